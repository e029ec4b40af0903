"""Input that can't be deployed gets one error that says why, and no file."""

import builtins

import pytest
import torch
from deployed import X, exported
from torch import nn

from lightning_effnn import deploy
from lightning_effnn.quantization import QuantizationPlan

NET = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
ROWS = torch.randn(6, 4)


class Branches(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: deploy.prepare(NET, ROWS, backend="onnxrutime"), ValueError, "did you mean 'onnxruntime'"),
        (lambda: deploy.prepare(NET, ROWS, "W9A9"), ValueError, "W8A8"),
        (lambda: deploy.prepare(NET, ROWS, 8), TypeError, "QuantizationPlan"),
        (lambda: deploy.prepare(NET, ROWS, scale="dynamic"), ValueError, "observed or learned"),
        (lambda: deploy.prepare(NET, {"x": ROWS}), TypeError, "example must be a tensor"),
        (lambda: deploy.prepare(nn.ReLU(), ROWS), ValueError, "no layer that onnxruntime can run in integers"),
        (lambda: deploy.prepare(Branches(), ROWS), ValueError, "Branches can't be captured by torch.export"),
        (lambda: deploy.prepare(NET, ROWS, QuantizationPlan({"9.weight": 8}, {})), ValueError, "9.weight"),
        (
            lambda: deploy.prepare(NET, ROWS, QuantizationPlan({"0.weight": 16, "2.weight": 16}, {"0": 8, "2": 8})),
            ValueError,
            "no kernel for weights of 16 bits",
        ),
        (lambda: deploy.calibrate_(deploy.prepare(NET, ROWS), []), ValueError, "at least one batch"),
        (lambda: deploy.calibrate_(deploy.prepare(NET, ROWS), [{"x": ROWS}]), TypeError, "1 input tensors"),
    ],
)
def test_what_can_not_be_prepared(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (lambda: ((NET, ROWS), {}), ValueError, "model must be prepared"),
        (lambda: ((deploy.prepare(NET, ROWS), ROWS), {}), ValueError, "2 quantisers of activations have no scale"),
        (lambda: ((exported("Plain").prepared, X), {"opset": 20}), ValueError, "opset must be from 21"),
        (lambda: ((exported("Plain").prepared, None), {}), TypeError, "example must be a tensor"),
    ],
)
def test_what_can_not_be_written_leaves_no_file(tmp_path, arguments, error, message):
    (model, example), options = arguments()
    with pytest.raises(error, match=message):
        deploy.to_onnx(model, example, tmp_path / "net.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_extra_that_has_it(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "onnxscript":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"need onnxscript: pip install 'lightning_effnn\[deploy\]'"):
        deploy.to_onnx(exported("Plain").prepared, X, tmp_path / "net.onnx")


def test_only_the_prepared_model_is_compared_with_its_file():
    case = exported("Plain")
    with pytest.raises(TypeError, match="must be the prepared model"):
        deploy.check(case.path, case.model, [X])
    with pytest.raises(ValueError, match="onnxruntime doesn't take"):
        deploy.check(__file__, case.prepared, [X])
