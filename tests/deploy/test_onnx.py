"""What is written computes what was prepared, in integers, in few bytes."""

import pytest
import torch
from deployed import CONVOLUTIONAL, NETWORKS, X, apart, exported, weights_in
from onnx import TensorProto, numpy_helper
from torch import nn
from torch.nn import functional as F

from lightning_effnn import deploy
from lightning_effnn.deploy.runtime import Session, integer_share
from lightning_effnn.quantization import QuantizationPlan

CASES = [*((name, "W8A8") for name in NETWORKS), ("Residual", "W4A8"), ("Plain", "W4A4")]


@torch.no_grad()
def outputs(case):
    return case.prepared.eval()(X)


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_the_file_as_it_stands_computes_what_the_prepared_model_does(name, bits):
    case = exported(name, bits)
    (found,), expected = Session(case.path, optimised=False).run(X), outputs(case)
    # Floats are summed in another order: now and then a value between two levels goes to the other one.
    assert (found - expected).abs().median() < 1e-5 * expected.std()
    assert apart(found, expected) < 0.01


@pytest.mark.parametrize(("name", "bits"), CASES)
def test_integer_kernels_compute_what_the_prepared_model_does(name, bits):
    case = exported(name, bits)
    (found,), expected = Session(case.path).run(X), outputs(case)
    assert apart(found, expected) < 0.01
    assert (found.argmax(1) == expected.argmax(1)).float().mean() >= 0.97


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_all_products_run_in_integer_kernels(name):
    case = exported(name)
    assert case.report.integer_macs == 1.0
    assert integer_share(case.path, X[:1]) == 1.0


@pytest.mark.parametrize("name", NETWORKS)
def test_eight_bits_stay_near_the_network_in_floats(name):
    case = exported(name)
    with torch.no_grad():
        expected = case.model(X)
    assert apart(outputs(case), expected) < 0.1


def test_what_stays_in_floats_is_named_with_its_share():
    report = exported("Attention").report
    left = {entry.operation.partition(" ")[0]: entry for entry in report.left_in_float}
    assert {"scaled_dot_product_attention", "layer_norm"} <= set(left)
    assert left["layer_norm"].share == 0
    attention = left["scaled_dot_product_attention"].share
    assert 0 < attention < 0.5
    assert report.integer_macs == pytest.approx(1 - attention)
    assert integer_share(exported("Attention").path, X[:1]) == pytest.approx(report.integer_macs)
    assert {entry.operation.partition(" ")[0] for entry in exported("Joined").report.left_in_float} >= {"hardswish"}


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_a_file_takes_batches_of_any_length(batch):
    case = exported("Residual")
    assert case.report.dynamic_batch
    (found,) = Session(case.path).run(X[:batch])
    assert apart(found, outputs(case)[:batch]) < 0.01


def test_weights_are_stored_under_their_names_in_as_few_bits_as_they_have():
    eight, four = weights_in(exported("Residual").path), weights_in(exported("Residual", "W4A8").path)
    assert set(eight) == set(four) == {"stem.weight", "one.weight", "two.weight", "head.weight"}
    assert {t.data_type for t in eight.values()} == {TensorProto.INT8}
    kinds = {name: t.data_type for name, t in four.items()}
    assert kinds.pop("stem.weight") == kinds.pop("head.weight") == TensorProto.INT8  # the first and the last layer
    assert set(kinds.values()) == {TensorProto.INT4}
    assert len(four["one.weight"].raw_data) == numpy_helper.to_array(eight["one.weight"]).size / 2


def test_each_layer_has_the_bits_of_a_mixed_plan(tmp_path):
    torch.manual_seed(0)
    model = NETWORKS["Residual"]().eval()
    layers = {"stem": 8, "one": 2, "two": 5, "head": 32}
    plan = QuantizationPlan({f"{n}.weight": bits for n, bits in layers.items()}, dict.fromkeys(layers, 8))
    prepared = deploy.calibrate_(deploy.prepare(model, X, plan), [X])
    report = deploy.to_onnx(prepared, X, tmp_path / "net.onnx")
    stored = weights_in(tmp_path / "net.onnx")
    assert stored["head.weight"].data_type == TensorProto.FLOAT
    levels = {name: set(numpy_helper.to_array(t).astype(int).flatten()) for name, t in stored.items()}
    assert levels["one.weight"] <= set(range(-2, 2))
    assert levels["two.weight"] <= set(range(-16, 16))
    assert max(levels["two.weight"]) > 7
    (left,) = (entry for entry in report.left_in_float if entry.share)
    assert left.operation.startswith("linear")
    assert "its weight no bits" in left.why
    with torch.no_grad():
        assert apart(Session(tmp_path / "net.onnx").run(X)[0], prepared.eval()(X)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "ratio"), [("W8A8", 3.7), ("W4A8", 7)])
def test_a_file_is_as_small_as_its_integers(tmp_path, bits, ratio):
    layers = [layer for _ in range(3) for layer in (nn.Linear(512, 512), nn.ReLU())]
    x = torch.randn(8, 32)
    prepared = deploy.prepare(nn.Sequential(nn.Linear(32, 512), *layers, nn.Linear(512, 10)), x, bits)
    report = deploy.to_onnx(deploy.calibrate_(prepared, [x]), x, tmp_path / "net.onnx")
    assert report.bytes == (tmp_path / "net.onnx").stat().st_size
    assert deploy.check(tmp_path / "net.onnx", prepared, [x], repeats=2).float_bytes / report.bytes >= ratio


def test_a_check_says_how_file_and_model_compare():
    case = exported("Mobile")
    report = deploy.check(case.path, case.prepared, [(X, torch.zeros(40)), (X, torch.zeros(40))], limit=1, repeats=3)
    assert report.inputs == 40
    assert report.difference < 0.01
    assert report.top1_equal >= 0.97
    assert report.integer_macs == 1.0
    assert [timing.batch for timing in report.timings] == [1, 8]
    assert all(timing.milliseconds > 0 for timing in report.timings)


class PartlyFloat(nn.Module):
    """Two convolutions and, between them, what there is no integer kernel for."""

    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = nn.Conv2d(3, 8, 3), middle, nn.Conv2d(8, 4, 1)

    def forward(self, x):
        return self.last(self.middle(self.first(x)))


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(10, 10, batch_first=True)

    def forward(self, x):
        return self.lstm(x.flatten(1, 2))[0].reshape(x.shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("middle", "operation"),
    [
        (lambda: nn.ConvTranspose2d(8, 8, 2, stride=2), "conv_transpose2d"),
        (lambda: nn.Conv3d(1, 1, 3, padding=1), "conv3d"),
        (Rows, "lstm"),
    ],
)
def test_the_share_that_is_said_is_that_of_the_kernels_that_run(tmp_path, middle, operation):
    torch.manual_seed(0)
    inner = middle()
    if operation == "conv3d":
        inner = nn.Sequential(nn.Unflatten(1, (1, 8)), inner, nn.Flatten(1, 2))
    prepared = deploy.calibrate_(deploy.prepare(PartlyFloat(inner).eval(), X), [X])
    report = deploy.to_onnx(prepared, X, tmp_path / "net.onnx")
    assert 0 < report.integer_macs < 1
    assert integer_share(tmp_path / "net.onnx", X[:1]) == pytest.approx(report.integer_macs)
    assert report.left_in_float[0].operation.startswith(operation)
    assert report.left_in_float[0].share == pytest.approx(1 - report.integer_macs)
    (found,) = Session(tmp_path / "net.onnx").run(X)
    assert apart(found, prepared.eval()(X)) < 0.01


def test_parts_of_a_split_and_shuffled_channels_stay_bytes(tmp_path):
    class Shuffled(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.deep = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
            self.head = nn.Linear(8, 3)

        def forward(self, x):
            kept, other = F.relu(self.wide(x)).chunk(2, 1)
            x = torch.cat((kept, self.deep(other)), 1).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Shuffled().eval()
    prepared = deploy.calibrate_(deploy.prepare(net, X), [X]).eval()
    report = deploy.to_onnx(prepared, X, tmp_path / "net.onnx")
    assert not report.left_in_float
    assert report.integer_macs == integer_share(tmp_path / "net.onnx", X[:1]) == 1
    with torch.no_grad():
        assert apart(prepared(X), net(X)) < 0.05
    assert apart(Session(tmp_path / "net.onnx").run(X)[0], prepared(X)) < 0.01


@pytest.mark.parametrize("kept", ["middle", "last"])
def test_a_layer_that_a_plan_leaves_in_floats_keeps_its_weights_between_rounded_ones(tmp_path, kept):
    torch.manual_seed(0)
    net = PartlyFloat(nn.Conv2d(8, 8, 3)).eval()
    with torch.no_grad():
        net.get_submodule(kept).weight[0].mul_(300)  # rounding would take the other channels to nothing
    layers = ("first", "middle", "last")
    plan = QuantizationPlan({f"{name}.weight": 32 if name == kept else 8 for name in layers}, dict.fromkeys(layers, 8))
    prepared = deploy.calibrate_(deploy.prepare(net, X, plan), [X]).eval()
    report = deploy.to_onnx(prepared, X, tmp_path / "net.onnx")
    assert 0 < report.integer_macs < 1
    assert integer_share(tmp_path / "net.onnx", X[:1]) == pytest.approx(report.integer_macs)
    assert apart(Session(tmp_path / "net.onnx").run(X)[0][:, 1:], prepared(X)[:, 1:]) < 0.01
