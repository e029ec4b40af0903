"""Tracing training: what it counts, and that it changes nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_effnn.hardware.trace import Tracer, trace


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )


def train(model, steps, traced, width=None):
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for step in range(steps):
        x, y = torch.randn(6, 3, 8, 8), torch.randint(10, (6,))
        tracer = Tracer(model, example=(x, y))
        if step in traced:
            tracer.__enter__()
        with torch.autocast("cpu", width or torch.bfloat16, enabled=width is not None):
            loss = F.cross_entropy(model(x), y)
        if step in traced:
            tracer.__exit__()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return [*model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize("width", [None, torch.bfloat16])
def test_training_with_traced_batches_is_bit_identical(width):
    plain = train(small_network(), 4, (), width)
    traced = train(small_network(), 4, (0, 2), width)
    assert all(torch.equal(a, b) for a, b in zip(plain, traced, strict=True))


def test_gradients_through_a_traced_backward_are_bit_identical():
    grads = []
    for traced in (False, True):
        model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
        x = torch.randn(4, 5, 16)
        tracer = Tracer(model, example=x)
        if traced:
            tracer.__enter__()
        model(x).square().sum().backward()
        if traced:
            tracer.__exit__()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_trace_of_training_leaves_gradients_buffers_and_random_state_alone():
    model = small_network()
    before = [t.clone() for t in model.state_dict().values()]
    state = torch.get_rng_state()
    trace(model, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3)), training=True)
    assert torch.equal(state, torch.get_rng_state())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))


def test_convolution_costs_as_much_for_each_gradient_as_forward():
    model = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.Conv2d(6, 8, (3, 1), groups=2))
    x = torch.randn(4, 3, 13, 13)
    result = trace(model, x, training=True)
    first, second = 6 * 6 * 6 * 27, 4 * 6 * 8 * 3 * 3
    assert result.select("forward").macs == first + second
    assert result.select("backward").macs == first + 2 * second  # the input needs no gradient
    assert {o.name for o in result.operations if o.phase == "backward" and o.is_mac} == {"0", "1"}
    assert trace(model, x, training=True, batch_size=4).macs == 4 * result.macs


@pytest.mark.parametrize(
    ("model", "shape"),
    [(nn.Conv2d(4, 4, 3, groups=4), (2, 4, 8, 8)), (nn.ConvTranspose2d(4, 6, 3, 2, groups=2), (2, 4, 5, 5)),
     (nn.Conv3d(2, 4, 3), (2, 2, 5, 5, 5)), (nn.Linear(6, 3), (2, 5, 6))],
    ids=["depthwise", "transposed", "3d", "linear"],
)  # fmt: skip
def test_backward_is_twice_the_forward_when_the_input_needs_a_gradient(model, shape):
    x = torch.randn(shape, requires_grad=True)
    with Tracer(model, example=x) as tracer:
        model(x).sum().backward()
    forward, backward = tracer.trace.select("forward"), tracer.trace.select("backward")
    assert backward.macs == 2 * forward.macs > 0
    assert tracer.trace.coverage == 1.0


def test_gradients_of_weights_are_not_rescaled_with_the_batch():
    result = trace(nn.Linear(6, 5), torch.randn(8, 6), training=True, batch_size=2)
    (product,) = [o for o in result.operations if o.phase == "backward" and o.is_mac]
    assert (product.B, product.C, product.K) == (5, 2, 6)
    (bias,) = [o for o in result.operations if o.phase == "backward" and o.op == "sum"]
    assert (bias.elements_in, bias.elements_out) in ((10, 5), (1, 5))  # the gradient of a sum is one number


def test_recurrent_layers_cost_twice_in_the_backward_pass():
    x = torch.randn(2, 7, 6, requires_grad=True)
    model = nn.LSTM(6, 5, batch_first=True)
    with Tracer(model, example=x) as tracer:
        model(x)[0].sum().backward()
    assert tracer.trace.select("backward").macs == 2 * tracer.trace.select("forward").macs == 2 * 7 * 20 * 11


def test_backward_operations_run_under_their_modules_names():
    result = trace(small_network(), torch.randn(4, 3, 8, 8), training=True)
    names = {o.op: o.name for o in result.operations if o.phase == "backward"}
    assert names["convolution_backward"] == "0"
    assert names["native_batch_norm_backward"] == "1"
    assert names["threshold_backward"] == "2"
    assert names["max_pool2d_with_indices_backward"] == "4"
    assert names["mm"] == "6"


def test_a_loss_of_the_users_own_is_differentiated():
    target = torch.randn(4, 2)
    result = trace(nn.Linear(3, 2), torch.randn(4, 3), training=True, loss=lambda y: F.mse_loss(y, target))
    assert [o.op for o in result.operations if o.phase == "loss"] == ["mse_loss"]
    assert any(o.op == "mse_loss_backward" for o in result.operations)


def test_an_output_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="gradient"):
        trace(nn.Flatten(), torch.randn(2, 3), training=True)
