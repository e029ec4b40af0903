"""What holds for every format alike."""

import pickle
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_effnn.formats import (
    BF16,
    FP8_E4M3,
    FP8_E5M2,
    FP16,
    FP32,
    FP64,
    TF32,
    Binary,
    FixedPoint,
    FloatingPoint,
    NumberFormat,
    PowerOfTwo,
    RecentralizedPowerOfTwo,
    Ternary,
)

FORMATS = [
    *(FP64, FP32, TF32, BF16, FP16, FP8_E4M3, FP8_E5M2),
    *(FloatingPoint(2, 1), FloatingPoint(2, 1, infinities=False), FloatingPoint(3, 2, padding_bits=2)),
    *(FloatingPoint(7, 12, infinities=False), FloatingPoint(9, 4), FloatingPoint(4, 30)),
    *(FixedPoint(1), FixedPoint(1, signed=False), FixedPoint(8), FixedPoint(4, signed=False)),
    *(FixedPoint(8, fraction_bits=5), FixedPoint(16, scale=0.1), FixedPoint(16, scale=3e-7, signed=False)),
    *(FixedPoint(24), FixedPoint(32), FixedPoint(32, scale=0.3), FixedPoint(32, signed=False)),
    *(FixedPoint(8, scale=2.0**-100), FixedPoint(8, scale=2.0**100)),
    *(Binary(), Binary(0.3), Ternary(), Ternary(0.3), Ternary(3.0, threshold=0.1), Ternary(threshold=0)),
    *(PowerOfTwo(2), PowerOfTwo(4), PowerOfTwo(5, 3), PowerOfTwo(8), PowerOfTwo(8, 127), PowerOfTwo(3, -124)),
    *(RecentralizedPowerOfTwo(3), RecentralizedPowerOfTwo(5), RecentralizedPowerOfTwo(5, -0.25, 0.5, 0.25, 1, 1.1)),
    *(RecentralizedPowerOfTwo(6, -4.0, 8.0, 1.0, 1, 0.3), RecentralizedPowerOfTwo(7, -4.0, 2.0, 2.0**3)),
]
SMALL = [f for f in FORMATS if f.bits <= 16]
NEAREST = [f for f in SMALL if not isinstance(f, Ternary) or f.threshold == f.scale / 2]
each_format = pytest.mark.parametrize("fmt", FORMATS, ids=repr)
each_small_format = pytest.mark.parametrize("fmt", SMALL, ids=repr)


def bits_of(x: Tensor) -> Tensor:
    """The bit pattern, so that the two zeros differ and a NaN equals itself."""
    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.view(widths[x.element_size()])


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(bits_of(a), bits_of(b))


def codes_of(fmt: NumberFormat) -> Tensor:
    """Every valid code of a small format."""
    codes = torch.arange(2**fmt.bits)
    refused = fmt._refused(codes)
    return codes if refused is None else codes[~refused]


def tensors(dtype: torch.dtype = torch.float32) -> st.SearchStrategy[Tensor]:
    """Finite numbers of every size, among them both zeros, subnormals and numbers near ties."""
    width = 64 if dtype == torch.float64 else 32
    any_size = st.floats(width=width, allow_nan=False, allow_infinity=False)
    usual = st.floats(-300, 300, width=width) | st.integers(-600, 600).map(lambda i: i / 2)
    return st.lists(any_size | usual, min_size=1, max_size=20).map(lambda v: torch.tensor(v, dtype=dtype))


def spread(dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded numbers over every magnitude that fits the dtype, and small half-integers."""
    generator = torch.Generator().manual_seed(0)
    top = 1000 if dtype == torch.float64 else 126
    exponents = torch.randint(-top, top, (3000,), generator=generator, dtype=torch.float64)
    wide = torch.randn(3000, generator=generator, dtype=torch.float64) * 2.0**exponents
    x = torch.cat([wide, torch.arange(-400, 400, dtype=torch.float64) / 2, torch.tensor([0.0, -0.0])]).to(dtype)
    return x[x.isfinite()]


@each_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_decoding_the_code_gives_the_quantised_number_bit_for_bit(fmt, dtype):
    x = spread(dtype)
    assert same(fmt.decode(fmt.encode(x)).to(dtype), fmt.quantize(x))


@each_small_format
def test_small_formats_round_trip_without_a_cast(fmt):
    x = spread()
    decoded = fmt.decode(fmt.encode(x))
    if decoded.dtype == torch.float32:
        assert same(decoded, fmt.quantize(x))


@given(x=tensors(), y=tensors(torch.float64), fmt=st.sampled_from(FORMATS))
@settings(max_examples=300)
def test_round_trip_holds_for_any_finite_number(x, y, fmt):
    for t in (x, y):
        assert same(fmt.decode(fmt.encode(t)).to(t.dtype), fmt.quantize(t))


@each_small_format
def test_every_code_round_trips(fmt):
    codes = codes_of(fmt)
    assert torch.equal(fmt.encode(fmt.decode(codes)).long(), codes)


@given(code=st.integers(0, 2**32 - 1), fmt=st.sampled_from([f for f in FORMATS if 16 < f.bits <= 35]))
def test_any_code_of_a_wide_format_round_trips(code, fmt):
    codes = torch.tensor([code % 2**fmt.bits])
    refused = fmt._refused(codes)
    if refused is None or not refused.any():
        assert torch.equal(fmt.encode(fmt.decode(codes)).long(), codes)


@each_small_format
def test_distinct_codes_are_distinct_levels(fmt):
    levels = fmt.decode(codes_of(fmt))
    levels = levels[~levels.isnan()]
    assert bits_of(levels).unique().numel() == levels.numel()


@given(x=tensors(torch.float64), fmt=st.sampled_from(FORMATS))
@settings(max_examples=300)
def test_quantising_twice_is_quantising_once(x, fmt):
    once = fmt.quantize(x)
    assert same(fmt.quantize(once), once)


@each_small_format
def test_float32_is_fine_enough_for_idempotence_up_to_16_bits(fmt):
    once = fmt.quantize(spread())
    assert same(fmt.quantize(once), once)


@each_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantising_keeps_order(fmt, dtype):
    q = fmt.quantize(spread(dtype).sort().values)
    assert bool((q[1:] >= q[:-1]).all())


@pytest.mark.parametrize("fmt", NEAREST, ids=repr)
def test_no_level_is_nearer_than_the_chosen_one(fmt):
    levels = fmt.decode(codes_of(fmt)).double()
    levels = levels[levels.isfinite()].sort().values
    ends = levels[[0, -1]]
    x = spread(torch.float64).clamp(*ends.tolist())
    after = torch.searchsorted(levels, x).clamp(1, levels.numel() - 1)
    best = torch.minimum((levels[after] - x).abs(), (levels[after - 1] - x).abs())
    chosen = (fmt.quantize(x) - x).abs()
    # levels of a scale that is no power of two are rounded to float32 themselves
    assert bool((chosen <= best * (1 + 1e-6) + x.abs() * 2.0**-23).all())


@each_format
def test_codes_are_below_two_to_the_bits(fmt):
    codes = fmt.encode(spread())
    assert codes.dtype == fmt.code_dtype
    if fmt.bits < 64:
        assert 0 <= int(codes.min()) <= int(codes.max()) < 2**fmt.bits


@each_format
def test_shape_dtype_and_emptiness_are_kept(fmt):
    for shape in [(), (0,), (2, 0, 3), (2, 3)]:
        x = torch.ones(shape, dtype=torch.float16)
        q, codes = fmt.quantize(x), fmt.encode(x)
        assert (q.shape, q.dtype) == (x.shape, x.dtype)
        assert codes.shape == fmt.decode(codes).shape == x.shape


@each_format
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_tensors_of_8_bit_floats_are_taken(fmt, dtype):
    x = torch.tensor([1.0, -2.0, 0.3]).to(dtype)
    assert same(fmt.quantize(x), fmt.quantize(x.float()).to(dtype))
    assert torch.equal(fmt.encode(x), fmt.encode(x.float()))
    assert fmt.fit(x) == fmt.fit(x.float())


@each_format
def test_nan_stays_nan_and_is_encoded_only_where_there_is_a_code(fmt):
    x = torch.tensor([1.0, torch.nan], requires_grad=True)
    assert fmt.quantize(x).isnan().tolist() == [False, True]
    if fmt.kind == "float":
        assert fmt.decode(fmt.encode(x)).isnan().tolist() == [False, True]
    else:
        with pytest.raises(ValueError, match=rf"x must not hold NaN.*{fmt.name}"):
            fmt.encode(x)


@each_format
def test_the_gradient_is_the_identity_near_zero_and_never_else_than_zero_or_one(fmt):
    level = float(fmt.decode(fmt.encode(torch.tensor([2.0**-60]))))
    for x in (torch.tensor([level], requires_grad=True), spread().requires_grad_()):
        incoming = torch.arange(1.0, x.numel() + 1)
        fmt.quantize(x).backward(incoming)
        passed = x.grad if x.grad is not None else incoming
        assert bool(((passed == 0) | (passed == incoming)).all())
        if x.numel() == 1:
            assert bool((passed == incoming).all())


@each_format
def test_numbers_chosen_by_saturation_have_no_gradient(fmt):
    x = torch.tensor([torch.inf, -torch.inf], requires_grad=True)
    q = fmt.quantize(x)
    if q.isinf().all():
        return  # infinities of the format's own do not saturate
    assert bool(q.isfinite().all())
    q.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]


def test_gradient_is_right_taken_twice_and_under_vmap():
    def f(x):
        return (FixedPoint(8).quantize(x) ** 2).sum()

    x = torch.tensor([1.3, 300.0], dtype=torch.float64)
    assert torch.func.grad(f)(x).tolist() == [2.0, 0.0]
    assert torch.func.jacrev(torch.func.jacrev(f))(x).tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert torch.vmap(torch.func.grad(f))(x.repeat(3, 1)).tolist() == [[2.0, 0.0]] * 3


@pytest.mark.parametrize(
    "fmt", [FixedPoint(8, 4), FP8_E4M3, BF16, PowerOfTwo(4), Ternary(), Binary(), RecentralizedPowerOfTwo(5)], ids=str
)
def test_quantising_compiles_without_a_graph_break(fmt):
    def loss(x):
        return (fmt.quantize(x) ** 2).sum()

    x = torch.linspace(-3, 3, 50)
    eager, compiled = x.clone().requires_grad_(), x.clone().requires_grad_()
    loss(eager).backward()
    torch.compile(loss, backend="aot_eager", fullgraph=True)(compiled).backward()
    assert torch.equal(eager.grad, compiled.grad)


@each_format
def test_a_format_is_a_value(fmt):
    copy = pickle.loads(pickle.dumps(fmt))
    assert copy == fmt
    assert hash(copy) == hash(fmt)
    assert str(fmt) == fmt.name
    assert eval(repr(fmt)) == fmt
    assert len(set(FORMATS)) == len(FORMATS)
    with pytest.raises(FrozenInstanceError):
        fmt.bits = 3


@each_format
def test_numbers_that_are_not_floating_are_refused(fmt):
    for method in (fmt.quantize, fmt.encode, fmt.fit):
        for wrong in (torch.tensor([1]), torch.tensor([1j])):
            with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got dtype"):
                method(wrong)
        with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got list"):
            method([1.0])


@each_format
def test_codes_out_of_range_are_refused(fmt):
    with pytest.raises(ValueError, match=r"codes must be in \[0, 2\*\*.*got -1"):
        fmt.decode(torch.tensor([0, -1]))
    if fmt.bits < 63:
        with pytest.raises(ValueError, match=rf"codes must be in .*got {2**fmt.bits}"):
            fmt.decode(torch.tensor([0, 2**fmt.bits]))
    with pytest.raises(TypeError, match=r"codes must be an integer tensor, got dtype torch.float32"):
        fmt.decode(torch.tensor([1.0]))
    with pytest.raises(TypeError, match=r"codes must be an integer tensor, got list"):
        fmt.decode([1])


@each_format
def test_codes_that_encode_never_gives_are_refused(fmt):
    codes = torch.arange(2 ** min(fmt.bits, 10))
    refused = fmt._refused(codes)
    for code in [] if refused is None else codes[refused][:5]:
        with pytest.raises(ValueError, match=rf"be one that encode gives.*got {code}"):
            fmt.decode(code)


@each_format
def test_fitting_is_refused_for_tensors_without_a_range(fmt):
    with pytest.raises(ValueError, match="at least one element"):
        fmt.fit(torch.empty(0))
    for value in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="must be finite"):
            fmt.fit(torch.tensor([1.0, value]))
    assert type(fmt.fit(torch.zeros(3))) is type(fmt)


def test_a_new_format_needs_a_name_and_two_maps():
    @dataclass(frozen=True)
    class Offset(NumberFormat):
        offset: float = 0.0
        kind: ClassVar = "fixed"
        name = "offset"

        def _to_codes(self, x):
            return (x - self.offset).round().clamp(0, 2**self.bits - 1).long()

        def _from_codes(self, codes):
            return codes.float() + self.offset

    fmt = Offset(2, offset=0.5)
    x = torch.tensor([-7.0, 1.6, torch.nan, 9.0], requires_grad=True)
    assert fmt.quantize(x)[[0, 1, 3]].tolist() == [0.5, 1.5, 3.5]
    assert fmt.quantize(x).isnan().tolist() == [False, False, True, False]
    fmt.quantize(x).sum().backward()
    assert x.grad.tolist() == [1.0] * 4
