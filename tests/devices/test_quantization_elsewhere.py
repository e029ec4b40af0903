"""Formats and quantisers take device and dtype from the tensors they round."""

import copy

import pytest
import torch
from torch import nn

from lightning_effnn.formats import (
    BF16,
    FP8_E4M3,
    FP8_E5M2,
    Binary,
    FixedPoint,
    PowerOfTwo,
    RecentralizedPowerOfTwo,
    Ternary,
)
from lightning_effnn.quantization import QuantizationPlan, TensorQuantizer, attach_, bake_, coverage, quantize_, strip_

FORMATS = [FixedPoint(4, scale=0.1), FixedPoint(12, signed=False), Binary(0.5), Ternary(0.5), PowerOfTwo(4),
           RecentralizedPowerOfTwo(5), RecentralizedPowerOfTwo(7), FP8_E4M3, FP8_E5M2, BF16]  # fmt: skip
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("number_format", FORMATS, ids=str)
def test_formats(number_format, dtype, device):
    x = torch.cat([torch.linspace(-3, 3, 41), torch.tensor([0.0])]).to(dtype)
    there = x.to(device).requires_grad_()
    levels = number_format.quantize(there)
    levels.sum().backward()
    codes = number_format.encode(there)
    assert (levels.device, levels.dtype, codes.device, there.grad.dtype) == (device, dtype, device, dtype)
    assert torch.equal(levels.detach().cpu(), number_format.quantize(x))
    assert torch.equal(codes.cpu(), number_format.encode(x))
    assert torch.equal(number_format.decode(codes).cpu(), number_format.decode(codes.cpu()))
    if hasattr(number_format, "fit"):
        assert number_format.fit(there) == number_format.fit(x)


@pytest.mark.parametrize("bits", [3, 5])
def test_levels_of_an_assigned_mean(bits, device):
    number_format, x = RecentralizedPowerOfTwo(bits, sigma=0.5), torch.linspace(-1, 1, 9)
    mean = torch.arange(9) % 2
    there = number_format.encode_assigned(x.to(device), mean.to(device))
    assert torch.equal(there.cpu(), number_format.encode_assigned(x, mean))
    rounder = number_format.rounder(device)
    assert torch.equal(rounder(x.to(device)).cpu(), number_format.quantize(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("scale", ["learned", "observed", "dynamic"])
def test_quantiser(scale, axis, dtype, device):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    here, there = (TensorQuantizer(4, scale=scale, axis=axis) for _ in range(2))
    for _ in range(2):
        levels, expected = there(x.to(device)), here(x)
    assert levels.device == device
    torch.testing.assert_close(levels.detach().cpu(), expected.detach())
    if scale == "learned":
        levels.float().square().sum().backward()
        assert there.scale.grad.device == device
    assert there.number_format.bits == 4
    again = TensorQuantizer(4, scale=scale, axis=axis)
    again.load_state_dict(there.state_dict())  # of a file, onto the CPU
    assert torch.equal(again(x).detach(), expected.detach())


@pytest.mark.parametrize("moved_first", [True, False])
@pytest.mark.parametrize("scale", ["learned", "observed"])
def test_a_quantised_network_trains_and_is_baked(scale, moved_first, device):
    net, x = network(), torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    here, there = net, copy.deepcopy(net)
    quantize_(here, "W4A8", scale=scale)
    if moved_first:
        there.to(device)
    attachment = quantize_(there, "W4A8", scale=scale)
    there.to(device)
    for model, batch in ((here, x), (there, x.to(device))):
        model(batch).square().mean().backward()
        model.eval()
    assert all(p.grad.device == device for p in there.parameters())
    torch.testing.assert_close(there(x.to(device)).detach().cpu(), here(x).detach())
    with attachment.calibrating():
        there(x.to(device))
    report = coverage(there, x.to(device))
    assert report.share == 1.0
    bake_(there)
    assert there[0].weight.device == device
    torch.testing.assert_close(there[0].weight.detach().cpu(), bake_(here)[0].weight.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_network_of_another_precision(dtype, device):
    net, x = network().to(device, dtype), torch.rand(2, 1, 4, 4, dtype=dtype, device=device)
    quantize_(net, QuantizationPlan.uniform(net, 4, 4), per_channel=True)
    out = net(x)
    out.sum().backward()
    assert (out.dtype, net[0].weight.grad.dtype) == (dtype, dtype)
    strip_(net)


def test_packed_sequences_and_attention(device):
    rnn = nn.RNN(4, 3).to(device)
    attach_(rnn, {"weight_ih_l0": TensorQuantizer(4)}, {"": TensorQuantizer(8)})
    assert rnn(torch.rand(2, 1, 4, device=device))[0].device == device
    attention = nn.MultiheadAttention(4, 2).to(device)
    quantize_(attention, "W8A8")
    x = torch.rand(3, 1, 4, device=device)
    assert attention(x, x, x)[0].device == device


def test_looking_at_a_model_leaves_the_random_numbers_of_its_device(device):
    net = nn.Sequential(network(), nn.Dropout(0.5)).to(device)
    module = torch.get_device_module(device)
    before = module.get_rng_state().clone()
    quantize_(net, "W8A8")

    class Noisy(nn.Module):
        def forward(self, x):
            return net(x) + torch.rand(3, device=x.device)

    coverage(nn.Sequential(Noisy(), nn.Linear(3, 3).to(device)), torch.rand(2, 1, 4, 4).to(device))
    assert torch.equal(module.get_rng_state(), before)
