"""The benchmarks against other libraries run, with and without these, and hold what they claim."""

import json

import pytest
import torch

from lightning_effnn.compression import Projector
from lightning_effnn.modules import SmallCNN
from lightning_effnn.recipes.benchmarks import _peers, compression_peers, compression_step_cost


@pytest.fixture
def _no_peers(monkeypatch):
    monkeypatch.setattr(_peers, "missing", lambda library: f"{library} is not installed: {_peers.EXTRA}")


@pytest.mark.usefixtures("_no_peers")
def test_step_cost_measures_every_phase_in_a_loop_and_in_a_trainer_and_says_what_is_missing(tmp_path, capsys):
    out = tmp_path / "deep" / "out.json"
    assert compression_step_cost.main(["--depth", "8", "--sizes", "2", "--rounds", "2", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    rows = {row["variant"]: row for row in found["steps"]}
    phases = compression_step_cost.PHASES
    assert set(rows) == {"plain step", *phases, "Trainer", *(f"Trainer, {phase}" for phase in phases)}
    assert rows["plain step"]["ratio"] == rows["Trainer"]["ratio"] == 1.0
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in rows.values())
    assert [event["times"] for event in found["events"]] == [100, 5, 1]
    printed = capsys.readouterr().out
    assert "brevitas is not installed" in printed
    assert "lightning_effnn[peers]" in printed


def test_step_cost_refuses_what_has_no_quartiles(capsys):
    assert compression_step_cost.main(["--rounds", "1"]) == 2
    assert "--rounds" in capsys.readouterr().err


@pytest.mark.parametrize("phase", compression_step_cost.PHASES)
def test_a_fit_goes_on_step_by_step_in_its_phase(phase):
    batch = compression_step_cost._batch(2)
    fit = compression_step_cost._Fit(8, batch, phase)
    try:
        fit.step()
        weight = fit.module.net.layer3[0].conv1.weight
        before = weight.detach().clone()
        for _ in range(2):
            fit.step()
        assert not torch.equal(weight, before)
        assert (weight == 0).any()
        assert (len(weight.unique()) <= 19) == (phase == "all rounded")
    finally:
        fit.stop()
    assert not fit.thread.is_alive()


def test_an_error_in_a_fit_is_raised_where_it_is_told_to_go_on():
    images = torch.zeros(2, 3, 32, 32)
    with pytest.raises(IndexError):  # no class has that number
        compression_step_cost._Fit(8, (images, torch.tensor([99, 99])), None).step()


def test_phases_are_what_they_are_called():
    found = {p: compression_step_cost._in_phase(SmallCNN(), p) for p in compression_step_cost.PHASES}
    assert all(isinstance(projector, Projector) for projector in found.values())
    assert [projector.fraction for projector in found.values()] == [0.0, 0.5, 1.0]
    cutting = [any(layer.threshold is not None for layer in projector.layers) for projector in found.values()]
    assert cutting == [True, False, False]


@pytest.mark.trains
@pytest.mark.usefixtures("_no_peers")
def test_peers_keeps_rows_does_not_run_them_twice_and_prints_the_smallest_first(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.json"
    arguments = ["--seeds", "1", "--start-epochs", "1", "--epochs", "1", "--out", str(out)]
    assert compression_peers.main(arguments) == 0
    rows = {row["method"]: row for row in json.loads(out.read_text())}
    assert rows["FocusedCompression, fp16 biases"]["bytes"] < rows["FocusedCompression"]["bytes"]
    focused = [row["bytes"] for name, row in rows.items() if name.startswith("FocusedCompression")]
    as_sparse = [row["bytes"] for name, row in rows.items() if name.startswith("Focused") and "zeros" not in name]
    assert max(as_sparse) < 1.5 * min(as_sparse)  # rounded inputs add their scales, and train other weights
    assert 2 * max(focused) < rows["pruned fp32, zip"]["bytes"]
    assert rows["pruned fp32, zip"]["bytes"] < rows["dense fp32, zip"]["bytes"] < rows["dense fp32"]["bytes"]
    assert all(0.2 < row["accuracy"] <= 1 for row in rows.values())
    printed = capsys.readouterr().out
    assert "torchao_qat: left out: torchao is not installed" in printed
    table = printed[printed.index("points are") :]
    assert table.index("Focused") < table.index("pruned") < table.index("dense fp32, zip")

    def again(*_):
        raise AssertionError("run a second time")

    monkeypatch.setattr(compression_peers, "Bench", again)
    assert compression_peers.main(arguments) == 0


def test_peers_names_missing_data(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    arguments = ["--task", "lenet5", "--methods", "dense", "--out", str(tmp_path / "out.json")]
    assert compression_peers.main(arguments) == 2
    assert "EFFNN_DATA" in capsys.readouterr().err


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_codes_hold_all_their_bits(bits):
    half = 1 << (bits - 1)
    codes = torch.arange(-half, half, dtype=torch.int8)
    data = _peers.Stored([(codes, bits)]).to_bytes()
    assert len(data) == 2 * half * bits // 8
    whole = int.from_bytes(data, "big")
    unpacked = [(whole >> (bits * place)) % (2 * half) for place in reversed(range(2 * half))]
    assert unpacked == [code % (2 * half) for code in codes.tolist()]


@pytest.mark.parametrize("bits", [4, 8])
def test_brevitas_networks_are_stored_as_codes_scales_and_shifts(bits):
    pytest.importorskip("brevitas", reason="needs the extra peers")
    net = SmallCNN()
    copy = _peers.brevitas_training(net, bits, collect_steps=1).train()
    assert torch.equal(copy.block2[0].weight, net.block2[0].weight)
    for _ in range(2):
        copy(torch.rand(4, 1, 8, 8)).sum().backward()
    stored = _peers.brevitas_stored(copy.eval(), bits)
    weights = sum(p.numel() for p in net.parameters() if p.ndim > 1)
    channels = 16 + 32 + 32 + 10
    numbers = 2 * channels + 4  # a scale and a shift a channel, a range an input
    assert len(stored.to_bytes()) == weights * bits // 8 + 4 * numbers
    assert all(codes.abs().max() == (1 << (bits - 1)) - 1 for codes, _ in stored.codes)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_torchao_networks_are_stored_as_codes_scales_and_biases(bits):
    pytest.importorskip("torchao", reason="needs the extra peers")
    net, images = SmallCNN().train(), torch.rand(4, 1, 8, 8)
    prepared = _peers.torchao_training(net, images, bits)
    prepared.train()
    prepared(images[:3]).sum().backward()
    trained = _peers.torchao_converted(prepared)
    static = _peers.torchao_static(net, [images], bits)
    weights = sum(p.numel() for p in net.parameters() if p.ndim > 1)
    for converted in (trained, static):
        stored = _peers.torchao_stored(converted, bits)
        assert sum(codes.numel() for codes, _ in stored.codes) == weights
        assert all(-(1 << (bits - 1)) <= codes.min() <= codes.max() < 1 << (bits - 1) for codes, _ in stored.codes)
        assert sum(numbers.numel() for numbers in stored.numbers[:-1]) == 2 * (16 + 32 + 32 + 10)
        assert converted(images).shape == (4, 10)
    linear = _peers.weight_only_stored(_peers.torchao_weight_only(net, bits), bits)
    assert [tuple(codes.shape) for codes, _ in linear.codes] == [(10, 32)]


@pytest.mark.slow
def test_every_peer_takes_part_where_it_is_installed(tmp_path):
    pytest.importorskip("torchao", reason="needs the extra peers")
    pytest.importorskip("brevitas", reason="needs the extra peers")
    out = tmp_path / "out.json"
    assert compression_peers.main(["--seeds", "1", "--start-epochs", "1", "--epochs", "1", "--out", str(out)]) == 0
    rows = {(row["method"], row["bits"]): row for row in json.loads(out.read_text())}
    dense = rows["dense fp32", 32]["bytes"]
    for method in ("torchao QAT", "torchao PT2E, no training", "brevitas QAT"):
        assert dense / rows[method, 8]["bytes"] > 3.9
        assert dense / rows[method, 4]["bytes"] > 7
    nets = compression_step_cost._peer_nets(8)
    assert len(nets) == 3
