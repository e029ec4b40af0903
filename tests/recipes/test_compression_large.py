import json

import pytest
import torch
from torch import nn

from lightning_effnn.recipes.benchmarks import compression_large, pruning_scopes
from lightning_effnn.recipes.benchmarks.compression_step_cost import PHASES

pytestmark = pytest.mark.trains


def test_steps_and_masks_are_measured_side_by_side(tmp_path, monkeypatch, capsys):
    def small():
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))

    monkeypatch.setattr(compression_large, "NETWORKS", {"small": (small, lambda: torch.rand(4, 16))})
    out = tmp_path / "large.json"
    assert compression_large.main(["--rounds", "2", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["phase"] for row in found["steps"]] == list(PHASES)
    assert all(row["ratio"] > 0 for row in found["steps"])
    assert found["masks"][0]["zeros"] == pytest.approx(found["masks"][0]["asked"], abs=0.02)
    assert "half rounded" in capsys.readouterr().out
    assert compression_large.main(["--rounds", "1"]) == 2


def test_the_networks_are_as_large_as_those_they_are_named_after():
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in build().parameters()) for build, _ in compression_large.NETWORKS.values()]
    assert sizes == [25_557_032, pytest.approx(109e6, rel=0.01)]


def test_each_threshold_has_its_accuracy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pruning_scopes, "EPOCHS", 1)
    out = tmp_path / "scopes.json"
    assert pruning_scopes.main(["--only", "mlp", "--seeds", "1", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert [row["threshold"] for row in found] == list(pruning_scopes.FLOORS)
    assert all(0 <= row["accuracy"][0] <= 1 for row in found)
    assert "layer" in capsys.readouterr().out
