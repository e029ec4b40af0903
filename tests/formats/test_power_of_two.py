"""Powers of two against brute force over the levels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_effnn.formats import PowerOfTwo

formats = st.builds(PowerOfTwo, st.integers(2, 6), st.integers(-40, 40)) | st.sampled_from(
    [PowerOfTwo(8), PowerOfTwo(8, 127), PowerOfTwo(2, -126), PowerOfTwo(7, -64)]
)


def levels_by_hand(fmt: PowerOfTwo) -> np.ndarray:
    """Levels from the definition, larger magnitudes first so that argmin gives them the ties."""
    count = 2 ** (fmt.bits - 1) - 1
    powers = 2.0 ** (fmt.max_exponent - np.arange(count))
    return np.concatenate([np.stack([powers, -powers], 1).ravel(), [0.0]])


@given(fmt=formats, data=st.data())
@settings(max_examples=200)
def test_the_level_is_the_nearest_and_ties_go_to_the_larger_magnitude(fmt, data):
    exponents = st.integers(max(fmt.exponents[0] - 3, -149), min(fmt.max_exponent + 3, 127))
    near_levels = st.builds(
        lambda m, e, s: float(np.float32(s * m * 2.0**e)),
        st.sampled_from([1.0, 1.25, 1.4999, 1.5, 1.5001, 1.75]),
        exponents,
        st.sampled_from([-1, 1]),
    )
    number = near_levels | st.floats(width=32, allow_nan=False, allow_infinity=False)
    x = np.array(data.draw(st.lists(number, min_size=1, max_size=20)), dtype=np.float32)
    levels = levels_by_hand(fmt)
    # beyond the range the distances of two levels could round to the same float64
    inside = np.clip(x.astype(np.float64), -levels[0], levels[0])
    nearest = levels[np.abs(inside[:, None] - levels).argmin(1)]
    for dtype in (torch.float32, torch.float64):
        q = fmt.quantize(torch.from_numpy(x).to(dtype)).numpy()
        assert np.array_equal(q, nearest)


@pytest.mark.parametrize("bits", range(2, 9))
def test_all_codes_but_minus_zero_are_used_and_ordered_by_magnitude(bits):
    fmt = PowerOfTwo(bits)
    half = 2 ** (bits - 1)
    positive = fmt.decode(torch.arange(half))
    negative = fmt.decode(torch.arange(half + 1, 2 * half))
    assert positive[0] == 0
    assert positive[-1] == 1
    assert torch.equal(positive[1:], 2.0 ** torch.tensor(list(fmt.exponents), dtype=torch.float32))
    assert torch.equal(negative, -positive[1:])
    with pytest.raises(ValueError, match=rf"be one that encode gives for pow2_{bits}, got {half}"):
        fmt.decode(torch.tensor([half]))


def test_multiplying_by_a_level_is_a_shift():
    fmt = PowerOfTwo(4, max_exponent=6)
    assert fmt.kind == "power_of_two"
    activations = torch.arange(-128, 128)
    for code in range(1, 8):
        shifted = activations << fmt.exponents[code - 1]
        assert torch.equal((activations * fmt.decode(torch.tensor(code))).long(), shifted)


def test_small_negative_numbers_become_plain_zero():
    q = PowerOfTwo(4).quantize(torch.tensor([-1e-9, -0.0]))
    assert q.tolist() == [0.0, 0.0]
    assert not q.signbit().any()


@given(st.floats(2.0**-120, 2.0**120, width=32), st.integers(2, 8))
def test_a_fitted_format_has_the_nearest_power_to_the_peak_and_does_not_saturate(peak, bits):
    x = torch.tensor([peak, -peak / 3, 0.0], requires_grad=True)
    fmt = PowerOfTwo(bits).fit(x)
    least = 2 ** (bits - 1) - 128
    if fmt.max_exponent > least:
        assert 0.75 <= peak / 2.0**fmt.max_exponent < 1.5
    fmt.quantize(x).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_zeros_keep_the_exponents_and_extremes_are_clamped():
    assert PowerOfTwo(4, 3).fit(torch.zeros(2)) == PowerOfTwo(4, 3)
    assert PowerOfTwo(4).fit(torch.tensor([1e-45])).exponents[0] == -126
    assert PowerOfTwo(4).fit(torch.tensor([3.4e38])).max_exponent == 127


def test_the_gradient_ends_where_the_next_power_would_be_nearer():
    x = torch.tensor([1.4999, 1.5, -1.5, 0.0, 1e-9], requires_grad=True)
    PowerOfTwo(4).quantize(x).sum().backward()
    assert x.grad.tolist() == [1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1,), ValueError, r"bits must be in \[2, 8\], got 1"),
        ((9,), ValueError, r"bits must be in \[2, 8\], got 9"),
        ((8, -1), ValueError, r"max_exponent must be in \[0, 127\], got -1"),
        ((4, 128), ValueError, r"max_exponent must be in \[-120, 127\], got 128"),
        ((4, 0.5), TypeError, r"max_exponent must be an integer in \[-120, 127\], got 0.5"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        PowerOfTwo(*arguments)
