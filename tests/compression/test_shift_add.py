"""Shifts and additions against torch in float64, exactly."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_effnn.compression.focus import focus
from lightning_effnn.compression.shift_add import shift_add_conv2d, shift_add_linear
from lightning_effnn.formats import FixedPoint, PowerOfTwo, RecentralizedPowerOfTwo

FORMATS = [
    *(PowerOfTwo(2), PowerOfTwo(4, -1), PowerOfTwo(5)),
    *(RecentralizedPowerOfTwo(3), RecentralizedPowerOfTwo(5, -0.25, 0.5, 0.125, 1)),
    *(RecentralizedPowerOfTwo(5, -0.25, 0.5, 0.25, scale=1.1), RecentralizedPowerOfTwo(6, -2.0, 1.0, 0.5, scale=0.7)),
]


def codes_of(fmt, shape, seed=0):
    """Every valid code, zero more often."""
    codes = torch.arange(2**fmt.bits)
    codes = codes[~fmt._refused(codes)]
    generator = torch.Generator().manual_seed(seed)
    chosen = codes[torch.randint(codes.numel(), shape, generator=generator)]
    return (chosen * (torch.rand(shape, generator=generator) < 0.7)).to(fmt.code_dtype)


def integers(shape, seed=1):
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(seed))


def weights_of(codes, fmt):
    """float64 weights before scaling, and the scale."""
    scale = getattr(fmt, "scale", 1.0)
    unscaled = RecentralizedPowerOfTwo(
        fmt.bits, fmt.mean_negative, fmt.mean_positive, fmt.sigma, fmt.max_exponent
    ) if isinstance(fmt, RecentralizedPowerOfTwo) else fmt  # fmt: skip
    return unscaled.decode(codes).double(), scale


@pytest.mark.parametrize("fmt", FORMATS, ids=repr)
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 3, 7), (0, 7)])
def test_a_linear_layer_is_exact(fmt, shape):
    codes, x = codes_of(fmt, (6, 7)), integers(shape)
    weights, scale = weights_of(codes, fmt)
    result = shift_add_linear(x, codes, fmt)
    assert result.integers.dtype == torch.int64
    assert torch.equal(result.values(), F.linear(x.double(), weights) * scale)
    if scale == 1:
        assert torch.equal(result.values(), F.linear(x.double(), fmt.decode(codes).double()))


@given(
    fmt=st.sampled_from(FORMATS),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.integers(0, 2) | st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2) | st.tuples(st.integers(1, 2), st.integers(1, 3)),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
@settings(max_examples=50)
def test_a_convolution_is_exact(fmt, kernel, stride, padding, dilation, groups, seed):
    codes, x = codes_of(fmt, (8, 4 // groups, *kernel), seed), integers((2, 4, 9, 8), seed)
    weights, scale = weights_of(codes, fmt)
    result = shift_add_conv2d(x, codes, fmt, stride, padding, dilation, groups).values()
    expected = F.conv2d(x.double(), weights, None, stride, padding, dilation, groups) * scale
    assert torch.equal(result, expected)


def test_a_focused_layer_on_fixed_point_activations_equals_its_float64_result():
    weight = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    weight = torch.where(weight.abs() > 1, weight, 0.0)
    found = focus(weight, alpha="one")
    activations = FixedPoint(8, fraction_bits=4)
    x = activations.quantize(torch.randn(5, 40, generator=torch.Generator().manual_seed(1)))
    result = shift_add_linear((x * 16).long(), found.codes, found.format).values() / 16
    assert torch.equal(result, F.linear(x.double(), found.weight.double()))


def test_no_activation_is_multiplied():
    class Watch(TorchDispatchMode):
        names: frozenset[str] = frozenset()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if any(isinstance(a, torch.Tensor) and a.dtype == torch.int64 and a.numel() > 60 for a in args):
                self.names |= {func.overloadpacket.__name__}
            return func(*args, **(kwargs or {}))

    fmt = FORMATS[4]
    with Watch() as watch:
        shift_add_conv2d(integers((2, 3, 9, 9)), codes_of(fmt, (4, 3, 2, 2)), fmt)
    assert {"__lshift__", "index_add_"} <= watch.names
    assert not watch.names & {"mul", "mul_", "mm", "bmm", "matmul", "addmm", "einsum", "convolution", "dot"}


def test_zeros_alone_give_zero():
    result = shift_add_linear(integers((2, 3)), torch.zeros(4, 3, dtype=torch.uint8), PowerOfTwo(8, 127))
    assert torch.equal(result.values(), torch.zeros(2, 4, dtype=torch.float64))


def test_sums_that_could_leave_the_accumulator_are_refused():
    fmt = PowerOfTwo(7)
    codes = fmt.encode(torch.tensor([[1.0, 2.0**-62]]))
    with pytest.raises(ValueError, match=r"a sum could take 66 bits, more than 62: activations of 2 bits, 2 inputs"):
        shift_add_linear(torch.tensor([[3, 3]]), codes, fmt)


def test_wrong_arguments_are_named():
    fmt, codes, x = PowerOfTwo(4), torch.zeros(2, 3, dtype=torch.uint8), torch.ones(1, 3, dtype=torch.int64)
    with pytest.raises(TypeError, match="x must be an integer tensor, got torch.float32"):
        shift_add_linear(x.float(), codes, fmt)
    with pytest.raises(TypeError, match="codes must be an integer tensor, got torch.float32"):
        shift_add_linear(x, codes.float(), fmt)
    with pytest.raises(TypeError, match="number_format must be PowerOfTwo or RecentralizedPowerOfTwo"):
        shift_add_linear(x, codes, FixedPoint(8))
    with pytest.raises(ValueError, match=r"codes must be \[out_features, 3\]"):
        shift_add_linear(x, codes[:, :2], fmt)
    with pytest.raises(ValueError, match=r"be one that encode gives for pow2_4, got 8"):
        shift_add_linear(x, codes + 8, fmt)
    image, kernel = x.new_ones(1, 4, 2, 2), codes.new_zeros(4, 2, 3, 3)
    with pytest.raises(ValueError, match=r"x must have 2 \* groups channels"):
        shift_add_conv2d(image, kernel, fmt)
    with pytest.raises(ValueError, match=r"the kernel \(3, 3\) with dilation \(1, 1\) is larger than the padded"):
        shift_add_conv2d(image, kernel, fmt, groups=2)
    with pytest.raises(ValueError, match="x and codes must have 4 axes"):
        shift_add_conv2d(image[0], kernel, fmt)
