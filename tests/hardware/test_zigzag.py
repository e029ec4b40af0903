import sys

import pytest

from lightning_effnn.hardware import estimate_layers

LAYERS = [
    {"name": "conv", "kind": "conv", "K": 20, "C": 12, "OY": 6, "OX": 6, "FY": 3, "FX": 3, "stride": 2},
    {"name": "depthwise", "kind": "depthwise", "G": 24, "OY": 5, "OX": 5, "FY": 3, "FX": 3},
    {"name": "fc", "kind": "gemm", "B": 4, "K": 37, "C": 30},
]


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["tpu_like", "eyeriss_like", "edge_tpu_like", "horowitz45"])
def test_the_simulator_itself_agrees_with_the_closed_form(chip):
    pytest.importorskip("zigzag", reason="needs the extra zigzag")
    closed = estimate_layers(LAYERS, chip).rows()
    simulated = estimate_layers(LAYERS, chip, engine="zigzag").rows()
    for mine, theirs in zip(closed, simulated, strict=True):
        assert mine["energy_pJ"] == pytest.approx(theirs["energy_pJ"], rel=0.02), mine["name"]
        assert mine["latency_cycles"] == pytest.approx(theirs["latency_cycles"], rel=0.05), mine["name"]


def test_a_missing_simulator_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "zigzag", None)
    with pytest.raises(ImportError, match=r"lightning_effnn\[zigzag\]"):
        estimate_layers([{**LAYERS[2], "K": 38}], "tpu_like", engine="zigzag")


def test_an_unknown_engine_is_refused():
    with pytest.raises(ValueError, match=r"engine='magic'.*'closed_form', 'zigzag'"):
        estimate_layers(LAYERS, "tpu_like", engine="magic")
