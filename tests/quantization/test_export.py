"""A baked model is a plain one: exporters take it as it is."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_effnn.quantization import bake_, quantize_, weight_sites

MODELS = {
    "cnn": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 3)
        ),
        (2, 1, 6, 6),
    ),
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), (2, 6)),
    "transformer": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ),
        (2, 5, 8),
    ),
}


@pytest.fixture(params=MODELS)
def baked(request):
    build, shape = MODELS[request.param]
    torch.manual_seed(0)
    model, x = build(), torch.randn(shape)
    quantize_(model, "W4A8", "learned")
    model(x)  # in train mode: batch statistics, ranges
    bake_(model).eval()
    return model, x, model(x).detach()


def test_torch_export(baked):
    model, x, expected = baked
    program = torch.export.export(model, (x,))
    assert torch.equal(program.module()(x), expected)
    for site in weight_sites(model):
        assert torch.equal(program.state_dict[site.name], site.parameter)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "export",
    [torch.jit.trace, lambda model, x: torch.onnx.export(model, (x,), "model.onnx", dynamo=False)],
    ids=["trace", "onnx"],
)
def test_what_can_not_export_quantisers_says_what_to_do(export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(2, 4)
    quantize_(model, "W8A8")
    with pytest.raises(RuntimeError, match=r"call lightning_effnn.quantization.bake_\(model\) first"):
        export(model, x)
    assert torch.equal(torch.jit.trace(bake_(model), x)(x), model(x))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("optimize", [False, True])
def test_onnx(baked, tmp_path, optimize):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x, expected = baked
    path = str(tmp_path / "model.onnx")
    torch.onnx.export(model, (x,), dynamo=True, verbose=False, optimize=optimize).save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)
    if optimize:  # batch norms are folded into convolutions, whose levels are then another channel for channel
        return
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer]
    for site in weight_sites(model):
        weight = site.parameter.detach().numpy()
        assert any(np.array_equal(array, view) for array in stored for view in (weight, weight.T)), site.name
