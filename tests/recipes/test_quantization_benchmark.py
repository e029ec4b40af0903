"""The quantisation benchmark runs and reports every way at every width."""

import json

import pytest

from lightning_effnn.recipes.benchmarks import quantization


@pytest.mark.slow
def test_each_way_is_measured_and_eight_bits_lose_nothing_much(tmp_path, capsys):
    out = tmp_path / "out.json"
    arguments = ["--seeds", "1", "--epochs", "3", "--more-epochs", "1", "--widths", "8,8", "--out", str(out)]
    assert quantization.main(arguments) == 0
    found = json.loads(out.read_text())
    assert list(found) == ["dense", *(f"W8A8 {way}" for way in quantization.WAYS)]
    dense = found["dense"][0]
    assert dense > 0.8
    assert all(abs(values[0] - dense) < 0.03 for name, values in found.items() if "post-training" in name)
    assert all(values[0] > dense - 0.03 for values in found.values())
    assert "W8A8 learned" in capsys.readouterr().out
