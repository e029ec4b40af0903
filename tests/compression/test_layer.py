import pytest
import torch
from torch import nn

from lightning_effnn.compression.layer import Layer, cut_and_splice_, select
from lightning_effnn.compression.pruning import cut_and_splice
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
def test_selection_is_where_bit_for_bit(dtype):
    x = numbers(dtype)
    mask = torch.rand(x.shape) > 0.5
    bits = torch.int64 if dtype == torch.float64 else torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(select(mask, x).view(bits), torch.where(mask, x, 0.0).view(bits))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [-1.0, 0.25, 0.5])
def test_quick_surgery_is_surgery(dtype, threshold):
    x = numbers(dtype)
    x, mask = x[x != 0], torch.rand(int((x != 0).sum())) > 0.5
    expected, kept, into = cut_and_splice(x, mask, torch.tensor(threshold, dtype=dtype)), mask.clone(), x.clone()
    cut_and_splice_(x, kept, threshold, into)
    clear = (x.abs() - 1.1 * threshold).abs() > 0.01  # 1.1 is another number in each dtype
    assert torch.equal(kept[clear], expected[clear])
    assert torch.equal(into.nan_to_num(), torch.where(kept, x, 0.0).nan_to_num())
    assert into.isnan().sum() == x.isnan().sum()


def test_weights_in_any_order_of_memory_are_selected():
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    mask = torch.rand(2, 3, 4, 4) > 0.5
    assert torch.equal(select(mask, x), torch.where(mask, x, 0.0))


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


WRONG = {
    "latent": torch.zeros(3),
    "mask": [True],
    "alpha": torch.zeros(2),
    "rounded_from": "none",
    "reason": None,
    "format": {"class": "Exec"},
    "threshold": [0.1],
}


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize("missing", [False, True])
def test_a_wrong_entry_of_a_state_is_named(key, missing):
    found = layer()
    state = found.state_dict()
    state.pop(key)
    if not missing:
        state[key] = WRONG[key]
    with pytest.raises(ValueError, match=f"{key} in the saved state of weight must be"):
        found.load_state_dict(state)


def test_a_tensor_in_place_of_a_state_is_refused():
    with pytest.raises(ValueError, match="the saved state of weight is no dictionary, but a Tensor"):
        layer().load_state_dict(torch.zeros(3))
