"""The recipes under deploy/ run on a little data and measure every file."""

import json

import pytest
import torch

from lightning_effnn.cli.main import main
from lightning_effnn.recipes.deploy import mobile_imagenet, resnet20_cifar10
from lightning_effnn.recipes.deploy._lite0 import EfficientNetLite0


@pytest.mark.slow
def test_a_residual_network_is_measured_as_four_files(images, tmp_path):
    few = ["--images", "40", "--steps", "2", "--repeats", "2", "--plans", "W4A8", "--out", "out.json"]
    assert resnet20_cifar10.main(few) == 0
    in_float, peer, ours, trained = json.loads((tmp_path / "out.json").read_text())
    assert [row["file"] for row in (in_float, peer, ours, trained)] == [
        "float32", "quantize_static", "W4A8", "W4A8 trained",
    ]  # fmt: skip
    assert in_float["integer"] == 0
    assert ours["integer"] == trained["integer"] == 1
    for row in (ours, trained):
        assert row["apart from model"] < 0.01
        assert row["top-1 as model"] >= 0.95
        assert row["smaller"] > 6.9
    assert ours["bytes"] < 0.6 * peer["bytes"]


def test_lite0_has_the_parameters_of_the_published_network():
    net = EfficientNetLite0().eval()
    assert sum(p.numel() for p in net.parameters()) == 4_652_008
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("EFFNN_DATA", raising=False)
    assert main(["run", "deploy/resnet20_cifar10"]) == 2
    assert "cifar10_resnet20.safetensors" in capsys.readouterr().err
    monkeypatch.setattr(mobile_imagenet, "pretrained", EfficientNetLite0)
    assert mobile_imagenet.main([]) == 2
    assert "imagenet_1000_jpeg.npz" in capsys.readouterr().err
