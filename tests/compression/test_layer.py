import pytest
import torch
from torch import nn

from lightning_effnn.compression.layer import Layer, blend, select
from lightning_effnn.formats import PowerOfTwo, RecentralizedPowerOfTwo
from lightning_effnn.quantization.sites import weight_sites

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def numbers(dtype):
    torch.manual_seed(0)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 0.5])
    return torch.cat([torch.randn(200), special]).to(dtype)


def layer(**kw):
    torch.manual_seed(0)
    site = weight_sites(nn.Linear(30, 20))[0]
    latent = site.parameter.detach().clone()
    return Layer(site, latent, torch.rand_like(latent) > 0.5, **kw)


@pytest.mark.parametrize("dtype", DTYPES)
def test_selection_and_blend_are_where_bit_for_bit(dtype):
    x, other = numbers(dtype), numbers(dtype).flip(0)
    mask = torch.rand(x.shape) > 0.5
    bits = torch.int64 if dtype == torch.float64 else torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(select(mask, x).view(bits), torch.where(mask, x, 0.0).view(bits))
    blended = torch.where(x.abs() >= 0.5, x, other)
    assert torch.equal(blend(x.abs(), 0.5, x, other).view(bits), blended.view(bits))


def test_weights_in_any_order_of_memory_are_selected():
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    mask = torch.rand(2, 3, 4, 4) > 0.5
    assert torch.equal(select(mask, x), torch.where(mask, x, 0.0))
    assert torch.equal(blend(x.abs(), 0.5, x, -x), torch.where(x.abs() >= 0.5, x, -x))


@pytest.mark.parametrize("rounded_from", [0.0, 0.05, float("inf")])
@pytest.mark.parametrize(
    ("number_format", "alpha"),
    [(RecentralizedPowerOfTwo(5, -0.125, 0.125, 0.03125), torch.tensor(1.1)), (PowerOfTwo(4, -2), None)],
)
def test_the_projection_is_what_the_format_says(number_format, alpha, rounded_from):
    found = layer(rounded_from=rounded_from)
    found.take_format(number_format, alpha)
    scale = 1.0 if alpha is None else alpha
    rounded = number_format.quantize(found.latent / scale) * scale
    weight = torch.where(found.latent.abs() >= rounded_from, rounded, found.latent)
    assert torch.equal(found.projection(), torch.where(found.mask, weight, 0.0))


def test_a_diverged_weight_stays_nan():
    found = layer(rounded_from=0.0)
    found.take_format(RecentralizedPowerOfTwo(5), torch.tensor(1.0))
    found.latent[0, 0], found.mask[0, 0] = torch.nan, True
    assert found.projection().isnan().sum() == 1


def test_a_state_restores_the_projection():
    found = layer(rounded_from=0.05)
    found.take_format(RecentralizedPowerOfTwo(4, sigma=0.125), torch.tensor(0.9))
    other = layer()
    other.latent.zero_()
    other.load_state_dict(found.state_dict())
    assert torch.equal(other.projection(), found.projection())
