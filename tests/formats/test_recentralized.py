"""Recentralised powers of two against brute force over the levels."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_effnn.formats import RecentralizedPowerOfTwo, parse_format
from lightning_effnn.formats.recentralized import nearest_power_of_two


def build(bits, negative, positive, sigma, top, scale):
    try:
        return RecentralizedPowerOfTwo(bits, -(2.0**negative), 2.0**positive, 2.0**sigma, top, scale)
    except ValueError:
        return None


formats = st.builds(
    build,
    st.integers(3, 7),
    st.integers(-6, 4),
    st.integers(-6, 4),
    st.integers(-8, 2),
    st.integers(-2, 3),
    st.just(1.0) | st.floats(0.01, 100),
).filter(lambda fmt: fmt is not None)


def lobe(fmt, mean):
    """Levels around one mean from the definition, before scaling."""
    steps = [fmt.sigma * 2.0**e for e in range(fmt.max_exponent - 2 ** (fmt.bits - 3) + 1, fmt.max_exponent + 1)]
    return {mean} | {mean + s for s in steps} | {mean - s for s in steps}


def levels_by_hand(fmt):
    return np.array(sorted(lobe(fmt, fmt.mean_negative) | lobe(fmt, fmt.mean_positive) | {0.0}))


def numbers_near(fmt, data):
    reach = float(np.float32(2 * np.abs(levels_by_hand(fmt)).max() * fmt.scale))
    return np.array(data.draw(st.lists(st.floats(-reach, reach, width=32), min_size=1, max_size=30)), np.float32)


@given(fmt=formats)
@settings(max_examples=200)
def test_levels_are_those_of_the_definition(fmt):
    expected = (fmt.scale * levels_by_hand(fmt)).astype(np.float32)
    assert np.array_equal(np.array(fmt.levels, np.float32), expected)
    assert np.unique(expected).size == expected.size


def test_five_bits_are_eighteen_levels_and_zero():
    fmt = RecentralizedPowerOfTwo(5)
    assert len(fmt.levels) == 2 * (2 * 4 + 1) + 1
    assert [len(RecentralizedPowerOfTwo(bits).levels) for bits in (3, 4, 6, 7)] == [7, 11, 35, 67]


@given(fmt=formats, data=st.data())
@settings(max_examples=150)
def test_the_level_is_the_nearest(fmt, data):
    x = numbers_near(fmt, data)
    levels = np.array(fmt.levels)
    best = np.abs(x[:, None].astype(np.float64) - levels).min(1)
    for dtype in (torch.float32, torch.float64):
        q = fmt.quantize(torch.from_numpy(x).to(dtype)).double().numpy()
        assert np.isin(q, levels).all()
        assert (np.abs(q - x) <= best + 1e-6 * fmt.scale * np.abs(levels).max()).all()


@given(fmt=formats)
@settings(max_examples=100)
def test_every_code_round_trips_and_is_the_smallest_of_its_level(fmt):
    codes = torch.arange(2**fmt.bits)
    codes = codes[~fmt._refused(codes)]
    levels = fmt.decode(codes)
    assert torch.equal(fmt.encode(levels).long(), codes)
    assert codes[0] == 0
    assert levels[0] == 0
    assert sorted(levels.tolist()) == list(fmt.levels)
    sign, top = 2 ** (fmt.bits - 2), 2 ** (fmt.bits - 1)
    smallest = {0.0: 0}  # written down from the description of the codes
    for code in range(1, 2**fmt.bits):
        mean = fmt.mean_positive if code >= top else fmt.mean_negative
        place = code % sign
        if place > len(fmt.exponents) or (place == 0 and not code & sign):
            continue
        step = fmt.sigma * 2.0 ** fmt.exponents[place - 1] if place else 0.0
        smallest.setdefault(mean - step if code & sign else mean + step, code)
    assert sorted(smallest.values()) == codes.tolist()


@given(fmt=formats, data=st.data())
@settings(max_examples=100)
def test_assigned_numbers_get_the_nearest_level_of_their_mean_and_zeros_stay(fmt, data):
    x = numbers_near(fmt, data)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=x.size, max_size=x.size)))
    values, component = torch.from_numpy(x), torch.from_numpy(chosen)
    q = fmt.quantize_assigned(values, component)
    codes = fmt.encode_assigned(values, component.int())
    assert torch.equal(fmt.decode(codes), q)
    assert torch.equal(fmt.encode(q), codes)  # canonical
    for number, positive, level in zip(x.tolist(), chosen, q.double().tolist(), strict=True):
        if number == 0:
            assert level == 0
            continue
        own = np.array(sorted(lobe(fmt, fmt.mean_positive if positive else fmt.mean_negative)))
        own = (fmt.scale * own).astype(np.float32).astype(np.float64)
        assert level in own
        assert abs(level - number) <= np.abs(own - number).min() + 1e-6 * np.abs(own).max()  # levels carry the scale


@given(fmt=formats)
@settings(max_examples=100)
def test_levels_are_exact_sums_of_two_powers_of_two(fmt):
    if fmt.scale == 1:
        parts = itertools.product((fmt.mean_negative, fmt.mean_positive), fmt.exponents, (-1, 1))
        for mean, exponent, sign in parts:
            assert float(np.float32(mean + sign * fmt.sigma * 2.0**exponent)) in fmt.levels


def test_a_tie_goes_to_the_larger_level_in_both_precisions():
    fmt = RecentralizedPowerOfTwo(3, sigma=0.25)  # 0, .75, 1, 1.25 and their negatives
    ties = [-1.125, -0.375, 0.375, 0.875, 1.125]
    for dtype in (torch.float32, torch.float64):
        q = fmt.quantize(torch.tensor(ties, dtype=dtype))
        assert q.tolist() == [-1.0, 0.0, 0.75, 1.0, 1.25]


def test_a_format_with_too_many_cells_for_a_table_answers_the_same():
    wide = RecentralizedPowerOfTwo(7, -4.0, 2.0, 8.0)
    assert (wide.levels[-1] - wide.levels[0]) / 2.0 ** (wide._smallest - 1) > 4096
    x = torch.linspace(-20, 20, 10001, dtype=torch.float64)
    levels = torch.tensor(wide.levels, dtype=torch.float64)
    distance = (wide.quantize(x) - x).abs()
    assert torch.equal(distance, (x[:, None] - levels).abs().min(1).values)


def test_nan_stays_and_infinities_saturate():
    fmt = RecentralizedPowerOfTwo(5)
    x = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert fmt.quantize(x)[0].isnan()
    assert fmt.quantize(x)[1:].tolist() == [1.25, -1.25]
    ones = torch.ones(3, dtype=torch.bool)
    assert fmt.quantize_assigned(x, ones).isnan().tolist() == [True, False, False]
    with pytest.raises(ValueError, match="x must not hold NaN"):
        fmt.encode_assigned(x, ones)


def test_the_gradient_ends_where_the_next_power_would_be_nearer():
    fmt = RecentralizedPowerOfTwo(5, scale=2.0)
    x = torch.tensor([2.749, 2.75, -2.749, -2.75, 0.0, 1.0], requires_grad=True)
    fmt.quantize(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 1.0, 0.0, 1.0, 1.0]


def test_a_fitted_format_has_the_powers_nearest_to_the_moments():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 1000, generator=generator)
    x = torch.cat([-0.27 + 0.03 * noise[0], torch.zeros(500), 1.1 + 0.03 * noise[1]])
    fitted = RecentralizedPowerOfTwo(5).fit(x)
    assert (fitted.mean_negative, fitted.mean_positive, fitted.sigma) == (-0.25, 1.0, 2.0**-5)
    one_sign = RecentralizedPowerOfTwo(5).fit(torch.tensor([0.5, 0.5]))
    assert (one_sign.mean_negative, one_sign.mean_positive, one_sign.sigma) == (-0.5, 0.5, 2.0**-9)
    assert RecentralizedPowerOfTwo(5, scale=3.0).fit(torch.zeros(3)) == RecentralizedPowerOfTwo(5, scale=3.0)


@given(st.floats(1e-30, 1e30))
def test_no_power_of_two_is_nearer(value):
    power = nearest_power_of_two(value)
    assert np.frexp(power)[0] == 0.5
    assert abs(power - value) <= min(abs(power * 2 - value), abs(power / 2 - value))


def test_the_name_finds_it():
    assert parse_format("focus5") == RecentralizedPowerOfTwo(5)
    assert RecentralizedPowerOfTwo(5).kind == "recentralized"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bits": 2}, ValueError, r"bits must be in \[3, 7\], got 2"),
        ({"bits": 8}, ValueError, r"bits must be in \[3, 7\], got 8"),
        ({"mean_negative": 0.5}, ValueError, r"mean_negative must be minus a power of two .*got 0.5"),
        ({"mean_positive": 0.3}, ValueError, r"mean_positive must be a power of two .*got 0.3"),
        ({"sigma": 0.0}, ValueError, r"sigma must be a power of two"),
        ({"sigma": float("nan")}, ValueError, r"sigma must be a power of two"),
        ({"sigma": "wide"}, TypeError, r"sigma must be a power of two, got 'wide'"),
        ({"sigma": 2.0**-30}, ValueError, r"within 20 binary places .*got 33 places"),
        ({"scale": -1.0}, ValueError, r"scale must be in"),
        ({"scale": 2.0**-98}, ValueError, r"all powers times scale must be in \[2\*\*-100, 2\*\*100\]"),
        ({"max_exponent": 0.5}, TypeError, r"max_exponent must be an integer"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        RecentralizedPowerOfTwo(**({"bits": 5} | arguments))


def test_a_component_is_a_tensor_of_the_same_shape():
    fmt = RecentralizedPowerOfTwo(5)
    with pytest.raises(ValueError, match=r"component must have the shape of x, \(2,\), got \(3,\)"):
        fmt.encode_assigned(torch.ones(2), torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="component must be a tensor of bools or integers"):
        fmt.encode_assigned(torch.ones(2), torch.ones(2))
