import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_effnn.compression import rans
from lightning_effnn.compression.errors import ArtifactError


def entropy_bytes(counts):
    used = counts[counts > 0].astype(float)
    return float((used * np.log2(used.sum() / used)).sum() / 8)


def draw(alphabet, count, skew=1.0, seed=0):
    return np.floor(alphabet * np.random.default_rng(seed).random(count) ** skew).astype(np.int64)


def best_frequencies(symbols, alphabet):
    counts = np.bincount(symbols, minlength=alphabet)
    return rans.quantize_frequencies(counts, 16)


@settings(max_examples=150)
@given(
    symbols=st.lists(st.integers(0, 6), max_size=300),
    bits=st.integers(3, 16),
    lanes=st.sampled_from([None, 1, 2, 16, 64]),
)
def test_what_is_encoded_is_decoded(symbols, bits, lanes):
    counts = np.bincount(symbols, minlength=7) if symbols else np.ones(7, dtype=np.int64)
    frequencies = rans.quantize_frequencies(counts, bits)
    data = rans.encode(np.array(symbols, dtype=np.int64), frequencies, lanes)
    assert rans.decode(data, len(symbols), frequencies).tolist() == symbols


@pytest.mark.parametrize("alphabet", [2, 19, 256, 4096])
@pytest.mark.parametrize("lanes", [1, 32, 4096])
def test_every_number_of_lanes_decodes_long_streams(alphabet, lanes):
    symbols = draw(alphabet, 30_001, skew=2.0)
    frequencies = best_frequencies(symbols, alphabet)
    assert (rans.decode(rans.encode(symbols, frequencies, lanes), symbols.size, frequencies) == symbols).all()


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_state_that_is_exactly_full_gives_up_a_word_first(lanes):
    frequencies = np.array([2, 2])
    message = np.repeat([0, 1, 0, 1], [5, 1, 30, 1]).repeat(lanes)  # in one lane the state meets its limit
    assert rans.decode(rans.encode(message, frequencies, lanes), message.size, frequencies).tolist() == message.tolist()


@pytest.mark.parametrize(("alphabet", "skew"), [(2, 1.0), (2, 6.0), (19, 1.0), (19, 8.0), (256, 2.0), (4096, 4.0)])
@pytest.mark.parametrize("count", [100_000, 1_000_000])
def test_long_streams_are_within_one_percent_of_their_entropy(alphabet, skew, count):
    symbols = draw(alphabet, count, skew)
    frequencies = best_frequencies(symbols, alphabet)
    entropy = entropy_bytes(np.bincount(symbols))
    assert entropy <= len(rans.encode(symbols, frequencies)) <= 1.01 * entropy + 4


def test_nearly_all_zeros_cost_far_less_than_a_bit_each():
    symbols = (draw(100, 200_000) == 0).astype(np.int64)  # one in a hundred
    size = len(rans.encode(symbols, best_frequencies(symbols, 2)))
    assert size * 8 / symbols.size < 0.083  # its entropy is 0.081 bits


@pytest.mark.parametrize(("alphabet", "skew"), [(2, 4.0), (32, 3.0), (1000, 2.0)])
def test_an_independent_coder_needs_as_many_bytes(alphabet, skew):
    symbols = draw(alphabet, 200_000, skew)
    frequencies = best_frequencies(symbols, alphabet)
    present = frequencies / frequencies.sum()
    peer = constriction.stream.stack.AnsCoder()
    model = constriction.stream.model.Categorical(present.astype(np.float32) + 1e-9, perfect=False)
    peer.encode_reverse(symbols.astype(np.int32), model)
    theirs = peer.num_bits() / 8
    assert len(rans.encode(symbols, frequencies)) == pytest.approx(theirs, rel=0.01)


@given(counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=200).filter(any), extra=st.integers(0, 6))
def test_frequencies_sum_to_a_power_of_two_and_none_that_occurs_is_lost(counts, extra):
    counts = np.array(counts)
    bits = min(16, max(1, int(np.ceil(np.log2(max((counts > 0).sum(), 1)))) + extra))
    frequencies = rans.quantize_frequencies(counts, bits)
    assert frequencies.sum() == 1 << bits
    assert ((frequencies > 0) == (counts > 0)).all()


def test_frequencies_are_the_best_there_are():
    counts = np.array([61, 25, 9, 5])
    ours = rans.coded_bits(counts, rans.quantize_frequencies(counts, 4))
    options = [(a, b, c, 16 - a - b - c) for a in range(1, 14) for b in range(1, 15 - a) for c in range(1, 16 - a - b)]
    assert ours == pytest.approx(min(rans.coded_bits(counts, np.array(option)) for option in options))


@pytest.mark.parametrize(
    ("counts", "bits"), [([1, 1, 1], 1), ([1], 0), ([1], 17), ([], 8), ([0, 0], 8), ([-1, 3], 8), ([[1, 2]], 8)]
)
def test_counts_that_no_frequencies_fit_are_refused(counts, bits):
    with pytest.raises(ValueError, match="must be"):
        rans.quantize_frequencies(np.array(counts), bits)


@pytest.mark.parametrize(
    ("symbols", "frequencies", "lanes", "said"),
    [
        ([0, 2], [2, 2], None, "symbols must be in"),
        ([0, -1], [2, 2], None, "symbols must be in"),
        ([0, 1], [4, 0], None, "symbol 1 occurs"),
        ([0, 1], [2, 1], None, "power of two"),
        ([0, 1], [2, 2], 3, "lanes must be"),
    ],
)
def test_what_cannot_be_encoded_is_refused(symbols, frequencies, lanes, said):
    with pytest.raises(ValueError, match=said):
        rans.encode(np.array(symbols), np.array(frequencies), lanes)


@pytest.mark.parametrize("lanes", [1, 64])
def test_damage_is_noticed_or_gives_another_message_never_anything_else(lanes):
    symbols = draw(19, 3_000, skew=5.0)
    frequencies = best_frequencies(symbols, 19)
    data = rans.encode(symbols, frequencies, lanes)
    rng = np.random.default_rng(0)
    noticed = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            assert rans.decode(bytes(damaged), symbols.size, frequencies).size == symbols.size
        except ArtifactError:
            noticed += 1
    assert noticed >= 297
    for cut in (b"", data[: len(data) // 2], data[:-1], data + b"\0\0"):
        with pytest.raises(ArtifactError):
            rans.decode(cut, symbols.size, frequencies)


def test_a_count_that_no_stream_has_is_refused_at_once():
    with pytest.raises(ArtifactError, match="more than is ever written"):
        rans.decode(b"\0", 1 << 40, np.array([2, 2]))
