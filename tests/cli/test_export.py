"""``effnn export``: ready weights and some data, a file that runs in integers."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import save_file

from lightning_effnn.cli.main import main
from lightning_effnn.deploy.runtime import Session, integer_share
from lightning_effnn.modules import SmallCNN
from lightning_effnn.quantization import QuantizationPlan

X = torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    torch.save({"state_dict": {f"net.{n}": x for n, x in SmallCNN().state_dict().items()}}, tmp_path / "net.ckpt")
    save_file({"x": X, "y": torch.zeros(80, dtype=torch.long)}, tmp_path / "data.safetensors")
    np.savez(tmp_path / "none.npz", images=X[:0].numpy())
    return tmp_path


def export(folder, *more, checkpoint="net.ckpt", data="data.safetensors"):
    model = ["--model", "lightning_effnn.modules:SmallCNN", "--data", str(folder / data)]
    return main(["export", str(folder / checkpoint), *model, "-o", str(folder / "net.onnx"), *more])


def test_a_checkpoint_becomes_a_file_that_runs_in_integers(folder, capsys):
    plan = QuantizationPlan.uniform(SmallCNN(), weights=4, activations=8)
    plan.save(folder / "bits.yaml")
    assert export(folder, "--plan", str(folder / "bits.yaml")) == 0
    printed = capsys.readouterr().out
    assert "taken: state_dict.net" in printed or "taken: net" in printed
    assert "100.0% of multiply-accumulates in integer kernels" in printed
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(folder / "net.onnx").graph.initializer}
    assert stored["block2.0.weight"] == TensorProto.INT4
    assert stored["block1.0.weight"] == stored["classifier.weight"] == TensorProto.INT8
    assert integer_share(folder / "net.onnx", X[:1]) == 1.0
    torch.manual_seed(0)
    with torch.no_grad():
        expected = SmallCNN().eval()(X)
    (found,) = Session(folder / "net.onnx").run(X)
    assert float((found - expected).square().mean() / expected.square().mean()) < 0.1**2


@pytest.mark.parametrize(
    ("more", "files", "message"),
    [
        (["--plan", "W3"], {}, "--plan W3: there is no such file, and the plans by name are W8A8"),
        (["--limit", "0"], {}, "--limit 0: use a whole number of at least 1"),
        ([], {"data": "absent.npz"}, "absent.npz' does not exist"),
        ([], {"data": "none.npz"}, "holds no inputs"),
        ([], {"checkpoint": "absent.ckpt"}, "absent.ckpt"),
    ],
)
def test_a_mistake_is_one_message_and_no_file(folder, capsys, more, files, message):
    assert export(folder, *more, **files) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "net.onnx").exists()


def test_what_is_there_is_kept_without_force(folder, capsys):
    (folder / "net.onnx").write_text("mine")
    assert export(folder) == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "net.onnx").read_text() == "mine"
