import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_effnn.compression import positions, streams
from lightning_effnn.compression.codec import decode_tensor, describe, encode_tensor, statistics
from lightning_effnn.compression.container import DTYPES
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.format_codes import decode_format, encode_format
from lightning_effnn.compression.stores import from_bytes
from lightning_effnn.compression.streams import Reader
from lightning_effnn.formats import (
    BF16,
    FP8_E4M3,
    FP16,
    Binary,
    FixedPoint,
    FloatingPoint,
    PowerOfTwo,
    RecentralizedPowerOfTwo,
    Ternary,
)

FORMATS = [
    FixedPoint(8, scale=0.013),
    FixedPoint(4, fraction_bits=3),
    FixedPoint(12, scale=0.001),
    FixedPoint(6, scale=0.1, signed=False),
    PowerOfTwo(4, max_exponent=-2),
    PowerOfTwo(8),
    Ternary(0.3, threshold=0.1),
    Binary(0.07),
    FP8_E4M3,
    FloatingPoint(3, 2),
    RecentralizedPowerOfTwo(5, mean_negative=-0.5, mean_positive=0.25, sigma=0.125),
    RecentralizedPowerOfTwo(4, scale=1.07),
]
SHAPES = [(), (0,), (1,), (3, 0, 2), (7,), (5, 3), (4, 3, 3, 3), (64, 65)]


def same_bits(a, b):
    flat = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


def round_trip(x, number_format=None, other="fp32"):
    encoded = encode_tensor(x, number_format, other)
    assert describe(encoded.data, x.dtype) == (encoded.layout, encoded.format)
    return decode_tensor(encoded.data, x.shape, x.dtype), encoded


@pytest.mark.parametrize("number_format", FORMATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_format_and_shape_comes_back_bit_for_bit(number_format, shape):
    torch.manual_seed(0)
    x = number_format.quantize(torch.randn(shape) * 0.3)
    for given_format in (number_format, None):
        back, _ = round_trip(x, given_format)
        assert same_bits(back, x)


@settings(max_examples=120)
@given(
    which=st.integers(0, len(FORMATS) - 1),
    shape=st.lists(st.integers(0, 9), max_size=4),
    density=st.sampled_from([0.0, 0.01, 0.2, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 1000),
    other=st.sampled_from(["fp32", "int8"]),
)
def test_a_declared_format_is_exact_whatever_else_is_rounded(which, shape, density, dtype, seed, other):
    torch.manual_seed(seed)
    number_format = FORMATS[which]
    x = number_format.quantize(torch.randn(shape)).to(dtype)
    x = torch.where(torch.rand(shape) < density, x, torch.zeros((), dtype=dtype))
    held = torch.equal(number_format.quantize(x.float()).to(dtype), x)
    back, _ = round_trip(x, number_format, other if held else "fp32")
    assert same_bits(back, x)


@settings(max_examples=150)
@given(
    dtype=st.sampled_from(sorted(DTYPES)),
    shape=st.lists(st.integers(0, 12), max_size=3),
    density=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    few=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_dtype_and_bit_pattern_comes_back(dtype, shape, density, few, seed):
    rng, dtype = np.random.default_rng(seed), DTYPES[dtype]
    count = math.prod(shape)
    raw = rng.integers(0, 2 if dtype == torch.bool else 256, (count, dtype.itemsize), dtype=np.uint8)
    if few and count:
        raw = raw[rng.integers(0, min(3, count), count)]
    raw *= (rng.random((count, 1)) < density).astype(np.uint8)
    x = from_bytes(raw, dtype).reshape(shape)
    back, encoded = round_trip(x)
    assert same_bits(back, x)
    assert encoded.statistics == statistics(x)


@pytest.mark.parametrize("special", [math.nan, -math.nan, math.inf, -math.inf, -0.0, 1e-45])
def test_special_numbers_survive_among_others(special):
    x = torch.tensor([0.0, 1.0, special, 0.0, special, 2.5] * 20)
    assert same_bits(round_trip(x)[0], x)
    assert same_bits(round_trip(x, FixedPoint(8))[0], x)  # the format has none of them: it is not used


def test_views_and_gradients_are_no_obstacle():
    x = torch.arange(24.0).reshape(4, 6).t()[::2].requires_grad_()
    assert same_bits(round_trip(x)[0], x.detach())
    z = torch.randn(3, dtype=torch.complex64).conj()
    assert torch.equal(round_trip(z)[0], z)


@pytest.mark.parametrize(("zeros", "most"), [(0.5, 2.01), (0.9, 0.68), (0.99, 0.105), (0.999, 0.0145)])
def test_sparse_codes_cost_their_entropy(zeros, most):
    torch.manual_seed(0)
    number_format = PowerOfTwo(4)
    x = number_format.quantize(torch.randn(400_000).sign() * 2.0 ** torch.randint(-1, 1, (400_000,)))
    x = x * (torch.rand(400_000) >= zeros) + 0.0  # no -0.0
    back, encoded = round_trip(x, number_format)
    assert torch.equal(back, x)
    assert len(encoded.data) <= 1.01 * encoded.statistics.entropy_bytes + 30
    assert len(encoded.data) * 8 / x.numel() < most


def test_a_constant_takes_a_few_bytes_whatever_its_size():
    for x in (torch.zeros(10**6), torch.ones(300, 300), torch.full((5000,), 0.1), torch.tensor(12345)):
        assert len(encode_tensor(x).data) <= 8


def test_numbers_are_kept_in_the_narrowest_type_that_holds_them():
    x = torch.randn(1000)
    sizes = {dtype: len(encode_tensor(x.to(dtype).float()).data) for dtype in (torch.float32, torch.float16)}
    assert sizes[torch.float16] < 2010 < sizes[torch.float32] < 4010
    assert len(encode_tensor(torch.arange(1000)).data) < 2010


def test_rounding_is_for_what_is_not_a_few_repeated_values():
    torch.manual_seed(0)
    many, few = torch.randn(1000), torch.randn(16).repeat(100)
    for other, step in (("fp16", 2e-3), ("int8", 0.02)):
        back, encoded = round_trip(many, other=other)
        assert encoded.format == other
        assert 0 < (back - many).abs().max() <= step
        assert torch.equal(round_trip(few, other=other)[0], few)


def test_rounding_never_makes_infinities_or_empty_variances():
    large, variances = torch.tensor([1e6, -3.0, 2e5]), torch.tensor([1e-4, 0.3, 10.0, 0.1])
    assert torch.equal(round_trip(large, other="fp16")[0], large)
    assert encode_tensor(large, other="int8").format == "int8"
    back, encoded = round_trip(variances, other="int8")
    assert encoded.format == "fp16"
    assert (back > 0).all()
    broken = torch.tensor([math.nan, 1.25, 2.5, 0.1])
    assert same_bits(round_trip(broken, other="int8")[0], broken)


def test_an_unknown_kind_of_rounding_is_refused():
    with pytest.raises(ValueError, match="fp32, fp16, int8"):
        encode_tensor(torch.ones(2), other="int4")


@pytest.mark.parametrize("number_format", [*FORMATS, BF16, FP16, FixedPoint(32, scale=1 / 3)], ids=str)
def test_formats_are_a_few_bytes(number_format):
    data = encode_format(number_format)
    reader = Reader(data)
    assert decode_format(reader) == number_format
    assert reader.left == 0
    assert len(data) <= 19


@given(st.binary(max_size=20))
def test_any_bytes_are_a_format_or_an_error(data):
    with contextlib.suppress(ArtifactError):
        decode_format(Reader(data))


@given(places=st.sets(st.integers(0, 5000), max_size=200))
def test_positions_come_back_by_gaps_and_by_mask(places):
    places = np.array(sorted(places), dtype=np.int64)
    gaps = Reader(positions.encode_gaps(positions.plan_gaps(places, 5001)))
    mask = Reader(positions.encode_mask(np.isin(np.arange(5001), places), positions.plan_mask(places.size, 5001)))
    assert positions.decode_gaps(gaps, 5001).tolist() == positions.decode_mask(mask, 5001).tolist() == places.tolist()
    assert gaps.left == mask.left == 0


@given(
    fields=st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 20)), max_size=50), number=st.integers(0, 2**63 - 1)
)
def test_small_pieces_come_back(fields, number):
    widths = np.array([width for _, width in fields], dtype=np.int64)
    values = np.array([value & ((1 << width) - 1) for value, width in fields], dtype=np.int64)
    assert streams.unpack_fields(streams.pack_fields(values, widths), widths).tolist() == values.tolist()
    assert Reader(streams.varint(number)).varint() == number


@given(st.lists(st.integers(0, 40), max_size=200), st.integers(41, 60))
def test_symbols_carry_their_own_table(symbols, alphabet):
    data = streams.encode_symbols(np.array(symbols, dtype=np.int64), alphabet)
    assert streams.decode_symbols(Reader(data), len(data), len(symbols), alphabet).tolist() == symbols


def test_damaged_streams_are_refused_or_decode():
    torch.manual_seed(0)
    sparse = PowerOfTwo(4).quantize(torch.randn(2000)) * (torch.rand(2000) < 0.1)
    rng = np.random.default_rng(0)
    for x, number_format in ((sparse, PowerOfTwo(4)), (sparse, None), (torch.randn(300), None)):
        data = encode_tensor(x, number_format).data
        for _ in range(400):
            damaged = bytearray(data)
            for _ in range(rng.integers(1, 4)):
                damaged[rng.integers(len(data))] = rng.integers(256)
            with contextlib.suppress(ArtifactError):
                assert decode_tensor(bytes(damaged[: rng.integers(len(data)) + 1]), x.shape, x.dtype).shape == x.shape
