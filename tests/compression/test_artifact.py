import json
import os
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_effnn.compression import codec, container, positions
from lightning_effnn.compression.artifact import inspect_compressed, load_compressed, read_info, save_compressed
from lightning_effnn.compression.container import DTYPES
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.stores import from_bytes
from lightning_effnn.formats import PowerOfTwo, RecentralizedPowerOfTwo, declare_format


class Network(nn.Module):
    """Convolution, norm with buffers, tied embedding and head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.embedding = nn.Embedding(40, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.embedding.weight


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = Network()
    model.norm(model.stem(torch.randn(2, 3, 8, 8)))
    number_format = RecentralizedPowerOfTwo(5).fit(model.stem.weight)
    with torch.no_grad():
        model.stem.weight.copy_(number_format.quantize(model.stem.weight) * (torch.rand(8, 3, 3, 3) < 0.4) + 0.0)
    declare_format(model.stem, "weight", number_format)
    return model


@pytest.fixture
def file(network, tmp_path):
    save_compressed(network, tmp_path / "network.effnn", metadata={"epoch": "3"})
    return tmp_path / "network.effnn"


def same_bits(a, b):
    flat = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)


def rewritten(data, body=None, head=None):
    """A file with another body or header of which sizes and checksum are right."""
    size = struct.unpack("<Q", data[:8])[0]
    body = data[8 + size : -4] if body is None else body
    head = json.loads(data[8 : 8 + size]) if head is None else head
    if isinstance(head, dict) and isinstance(head.get("effnn"), dict):
        head["effnn"].update(shape=[len(body) + 4], data_offsets=[0, len(body) + 4])
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    whole = struct.pack("<Q", len(text)) + text + body
    return whole + struct.pack("<I", zlib.crc32(whole))


def with_index(data, change, elements=None):
    """A file of which the index is changed, and everything else put right."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    reader = container.Reader(data[start:-4])
    claimed, packed = reader.varint(), reader.take(reader.varint())
    inflater = zlib.decompressobj(-zlib.MAX_WBITS, zdict=container._NAMES_FIRST)
    index = json.loads(inflater.decompress(packed))
    text = change(index)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=container._NAMES_FIRST)
    packed = deflater.compress(text if isinstance(text, bytes) else json.dumps(text).encode()) + deflater.flush()
    elements = claimed if elements is None else elements
    body = container.varint(elements) + container.varint(len(packed)) + packed + reader.take(reader.left)
    return rewritten(data, body)


def test_a_network_comes_back_bit_for_bit_and_tied_weights_stay_tied(network, file):
    state = load_compressed(file)
    assert list(state) == list(network.state_dict())
    assert all(same_bits(state[name], x) for name, x in network.state_dict().items())
    assert state["head.weight"].data_ptr() == state["embedding.weight"].data_ptr()
    other = Network()
    assert load_compressed(file, other) is other
    assert all(same_bits(x, network.state_dict()[name]) for name, x in other.state_dict().items())
    assert other.head.weight is other.embedding.weight


def test_report_tells_every_byte(network, file, tmp_path):
    report = save_compressed(network, tmp_path / "again.effnn")
    rows = {row["name"]: row for row in report.rows()}
    assert report.bytes == (tmp_path / "again.effnn").stat().st_size
    assert rows["stem.weight"]["format"] == "focus5"
    assert rows["stem.weight"]["sparsity"] == pytest.approx(float((network.stem.weight == 0).float().mean()))
    assert rows["head.weight"] | {"tied_to": "embedding.weight", "bytes": 0} == rows["head.weight"]
    unique = sum(p.numel() for p in network.parameters()) + sum(b.numel() for b in network.buffers())
    assert report.dense_bytes == 4 * unique
    assert report.ratio == report.dense_bytes / report.bytes
    assert report.bits_per_weight == report.bytes * 8 / unique
    assert sum(row["bytes"] for row in rows.values()) < report.bytes
    for text in ("stem.weight", "focus5", "= embedding.weight", "header, index, checksum"):
        assert text in str(report)


def test_inspecting_gives_the_report_of_saving_and_info_does_without_decoding(network, file, monkeypatch):
    again, state = inspect_compressed(file)
    assert again.rows() == [
        row | ({"sparsity": again.rows()[i]["sparsity"], "distinct": again.rows()[i]["distinct"],
                "entropy_bytes": again.rows()[i]["entropy_bytes"]} if row["tied_to"] else {})
        for i, row in enumerate(save_compressed(network, file).rows())
    ]  # fmt: skip
    monkeypatch.setattr("lightning_effnn.compression.codec.decode_tensor", None)
    info = read_info(file)
    assert [t.name for t in info.tensors] == list(state)
    assert info.tensors[0].format == "focus5"


def test_any_reader_of_safetensors_opens_it_and_reads_the_metadata(file):
    with safetensors.safe_open(file, "np") as opened:
        assert opened.keys() == ["effnn"]
        assert opened.metadata() == {"effnn": "1", "epoch": "3"}
        assert opened.get_tensor("effnn").dtype == np.uint8
    assert read_info(file).metadata == {"epoch": "3"}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.text(max_size=12),
        st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 5), max_size=3), st.booleans()),
        max_size=5,
    ),
    seed=st.integers(0, 100),
)
def test_any_state_dict_comes_back(tensors, seed, tmp_path):
    rng, state = np.random.default_rng(seed), {}
    for name, (dtype, shape, few) in tensors.items():
        most = 2 if few or dtype == "BOOL" else 256
        raw = rng.integers(0, most, int(np.prod(shape)) * DTYPES[dtype].itemsize, dtype=np.uint8)
        state[name] = from_bytes(raw, DTYPES[dtype]).reshape(shape)
    save_compressed(state, tmp_path / "x.effnn", signed_zeros=True)
    back = load_compressed(tmp_path / "x.effnn")
    assert list(back) == list(state)
    assert all(same_bits(back[name], x) for name, x in state.items())


def test_the_sign_of_zeros_is_kept_only_if_asked_for(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(200, 200) * (torch.rand(200, 200) < 0.02)
    sizes = []
    for signed in (False, True):
        sizes.append(save_compressed({"w": weight}, tmp_path / "x", signed_zeros=signed).bytes)
        back = load_compressed(tmp_path / "x")["w"]
        assert torch.equal(back, weight)
        assert same_bits(back, weight) == signed
    assert sizes[1] > sizes[0] + 4500


def test_rounding_what_is_not_quantised_makes_a_smaller_file(network, tmp_path):
    sizes = [save_compressed(network, tmp_path / o, other=o).bytes for o in ("fp32", "fp16", "int8")]
    assert sizes[0] > sizes[1] > sizes[2]
    back = load_compressed(tmp_path / "int8")
    assert torch.equal(back["stem.weight"], network.stem.weight)
    assert torch.equal(back["norm.num_batches_tracked"], network.norm.num_batches_tracked)
    assert 0 < (back["embedding.weight"] - network.embedding.weight).abs().max() < 0.02


@pytest.mark.parametrize("other", ["fp16", "int8"])
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.itemsize == 1])
def test_numbers_of_one_byte_are_never_rounded(dtype, other, tmp_path):
    torch.manual_seed(0)
    state = {"scale": (torch.randn(9) * 3).to(dtype), "none": torch.zeros(0).to(dtype)}
    save_compressed(state, tmp_path / "x.effnn", other=other)
    assert all(same_bits(x, state[name]) for name, x in load_compressed(tmp_path / "x.effnn").items())


def test_a_save_interrupted_half_way_leaves_the_old_file(network, file, monkeypatch):
    before = file.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        save_compressed({"w": torch.ones(3)}, file)
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_a_model_that_does_not_fit_is_told_every_difference_and_left_alone(file):
    model = nn.ModuleDict({"stem": nn.Conv2d(3, 9, 3), "tail": nn.Linear(2, 2)})
    before = {name: x.clone() for name, x in model.state_dict().items()}
    with pytest.raises(ArtifactError) as caught:
        load_compressed(file, model)
    for text in ("missing in the file: tail.weight, tail.bias", "not in the model: norm.weight",
                 "stem.weight (8, 3, 3, 3) in the file, (9, 3, 3, 3) in the model", str(file)):  # fmt: skip
        assert text in str(caught.value)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


class Lit(nn.Module):
    """A network in another, as a LightningModule holds it."""

    def __init__(self, *names):
        super().__init__()
        for name in names:
            setattr(self, name, nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))


@pytest.mark.parametrize("more", [{}, {"loss.weight": torch.ones(3)}])
def test_the_file_of_a_module_around_a_network_loads_into_the_network(more, tmp_path):
    lit = Lit("net")
    save_compressed(lit.state_dict() | more, tmp_path / "x.effnn")
    net = Lit("net").net
    assert load_compressed(tmp_path / "x.effnn", net) is net
    assert all(torch.equal(x, lit.net.state_dict()[name]) for name, x in net.state_dict().items())


def test_the_file_of_a_network_loads_into_a_module_that_holds_nothing_else(tmp_path):
    net, lit, two = Lit("net").net, Lit("net"), Lit("student", "teacher")
    save_compressed(net, tmp_path / "x.effnn")
    load_compressed(tmp_path / "x.effnn", lit)
    assert all(torch.equal(x, net.state_dict()[name]) for name, x in lit.net.state_dict().items())
    before = {name: x.clone() for name, x in two.state_dict().items()}
    with pytest.raises(ArtifactError, match="missing in the file: student.0.weight"):
        load_compressed(tmp_path / "x.effnn", two)
    assert all(torch.equal(x, before[name]) for name, x in two.state_dict().items())


def test_of_two_networks_in_a_file_one_has_to_be_named(tmp_path):
    two = Lit("student", "teacher")
    save_compressed(two, tmp_path / "x.effnn")
    with pytest.raises(ArtifactError, match=r"student, teacher. Say which is meant: network='student'"):
        load_compressed(tmp_path / "x.effnn", Lit("net").net)
    net = load_compressed(tmp_path / "x.effnn", Lit("net").net, network="teacher")
    assert torch.equal(net[0].weight, two.teacher[0].weight)
    with pytest.raises(ArtifactError, match="called 'net'; there is: student, teacher"):
        load_compressed(tmp_path / "x.effnn", Lit("net").net, network="net")


def test_a_network_is_not_taken_for_a_part_of_a_deeper_one(tmp_path):
    save_compressed(nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))), tmp_path / "x.effnn")
    with pytest.raises(ArtifactError, match=r"not in the model: 2.weight"):
        load_compressed(tmp_path / "x.effnn", nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))


def test_tied_weights_come_out_of_a_module_around_them(tmp_path):
    lit, net = nn.ModuleDict({"alias": Network(), "net": Network()}), Network()
    lit["alias"].embedding.weight = lit["alias"].head.weight = lit["net"].embedding.weight
    save_compressed(lit, tmp_path / "x.effnn")
    load_compressed(tmp_path / "x.effnn", net, network="net")
    assert net.head.weight is net.embedding.weight
    assert torch.equal(net.embedding.weight, lit["net"].embedding.weight)


def test_a_damaged_file_leaves_the_model_alone(file):
    model = Network()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    data = file.read_bytes()
    file.write_bytes(data[:-40] + b"\x55" * 20 + data[-20:])
    with pytest.raises(ArtifactError, match="checksum"):
        load_compressed(file, model)
    file.write_bytes(rewritten(data, data[8 + struct.unpack("<Q", data[:8])[0] : -40] + b"\x55" * 36))
    with pytest.raises(ArtifactError):
        load_compressed(file, model)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"state": {"w": [1.0]}}, TypeError, "'w'"),
        ({"state": [torch.ones(2)]}, TypeError, "list"),
        ({"state": {"w": torch.ones(2, 2).to_sparse()}}, TypeError, "dense"),
        ({"state": {"w": torch.ones(2, device="meta")}}, TypeError, "meta"),
        ({"state": nn.LazyLinear(3)}, TypeError, "lazy"),
        ({"other": "int4"}, ValueError, "int4"),
        ({"metadata": {"effnn": "x"}}, ValueError, "effnn"),
        ({"metadata": {"epoch": 3}}, ValueError, "metadata"),
        ({"formats": {"v": PowerOfTwo(4)}}, ValueError, "v"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_a_file_is_there(wrong, error, said, tmp_path):
    arguments = {"state": {"w": torch.ones(2)}} | wrong
    with pytest.raises(error, match=said):
        save_compressed(arguments.pop("state"), tmp_path / "x.effnn", **arguments)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda data: b"", "not a compressed network"),
        (lambda data: b"PK\3\4" + data, "not a compressed network"),
        (lambda data: data[:60], "truncated"),
        (lambda data: data[:-9], "truncated"),
        (lambda data: data + b"\0", "does not describe"),
        (lambda data: rewritten(data, head=b"{" * 2000), "header is damaged"),
        (lambda data: rewritten(data, head=b'{"a":' * 100_000), "damaged"),
        (lambda data: rewritten(data, head={"__metadata__": {"effnn": "2"}}), "version '2'"),
        (lambda data: with_index(data, lambda index: b"[]"), "no JSON object"),
        (lambda data: with_index(data, lambda index: b'{"a":[[1],2],"a":[[1],2]}'), "twice"),
        (lambda data: with_index(data, lambda index: index, elements=5), "claims"),
        (lambda data: with_index(data, lambda index: {"a": "b"}), "tied"),
        (lambda data: with_index(data, lambda index: {"a": [[-1], 1]}), "out of range"),
        (lambda data: with_index(data, lambda index: {"a": [[0, 2**70], 1]}), "out of range"),
        (lambda data: with_index(data, lambda index: {"a": [[True], 1]}), "out of range"),
        (lambda data: with_index(data, lambda index: {"a": [[1], 1, "F33"]}), "F33"),
        (lambda data: with_index(data, lambda index: {"a": [[10**11], 1]}, 10**11), "claims"),
        (lambda data: with_index(data, lambda index: {"a": [[1], 10**9]}, 1), "ends early"),
        (lambda data: with_index(data, lambda index: b'{"' + b"a" * 10**8 + b'":[[1],1]}'), "index"),
    ],
)
def test_what_is_no_artifact_is_refused_in_words(file, make, said):
    file.write_bytes(make(file.read_bytes()))
    with pytest.raises(ArtifactError, match=said) as caught:
        load_compressed(file)
    assert str(file) in str(caught.value)


def test_plain_safetensors_are_told_apart(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ArtifactError, match="without 'effnn'"):
        load_compressed(tmp_path / "plain.safetensors")


def test_more_elements_than_the_rule_allows_are_padded_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "FREE_ELEMENTS", 1000)
    monkeypatch.setattr(container, "ELEMENTS_A_BYTE", 100)
    report = save_compressed({"w": torch.zeros(100, 1000)}, tmp_path / "x")
    assert 900 < report.bytes < 1100
    assert torch.equal(load_compressed(tmp_path / "x")["w"], torch.zeros(100, 1000))


STREAMS = {
    "nothing but zeros": torch.zeros(64),
    "one value": torch.full((64,), 2.5),
    "one value of sixteen bytes": torch.zeros(64, dtype=torch.complex128),
    "one truth value": torch.ones(64, dtype=torch.bool),
    "a few values left": torch.eye(300).reshape(-1),
    "one level of a format": torch.full((64,), 0.5),
    "few of another value": torch.cat([torch.ones(100_000), torch.zeros(3)]),
    "numbers": torch.randn(64, generator=torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("shape", [(1 << 12, 1 << 12), (1 << 13, 1 << 13), (1 << 16, 1 << 15), (1 << 35,)])
@pytest.mark.parametrize("kind", STREAMS)
def test_a_small_file_that_claims_much_is_refused_before_memory_is_taken(kind, shape, tmp_path):
    x, path = STREAMS[kind], tmp_path / "claims.effnn"
    number_format = PowerOfTwo(4) if "level" in kind else None
    entry = container.Entry("w", shape, x.dtype, codec.encode_tensor(x, number_format).data)
    container.write_container(path, container.Container([entry]))
    assert path.stat().st_size < 1000
    tracemalloc.start()
    try:
        for read in (load_compressed, read_info, lambda file: load_compressed(file, nn.Linear(2, 2))):
            with pytest.raises(ArtifactError, match=r"claims \d+ elements.*at most 8388608 and 256 more for each"):
                read(path)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_many_small_tensors_may_not_claim_more_than_one_large(tmp_path):
    data = codec.encode_tensor(torch.zeros(8)).data
    entries = [container.Entry(f"w{n}", (1 << 20,), torch.float32, data) for n in range(100)]
    container.write_container(tmp_path / "x", container.Container(entries))
    with pytest.raises(ArtifactError, match=f"claims {100 << 20} elements"):
        load_compressed(tmp_path / "x")


@pytest.mark.parametrize("kind", ["zeros", "every other one"])
def test_what_the_largest_claim_of_a_small_file_takes_is_bounded(kind, tmp_path):
    count = container.FREE_ELEMENTS
    data = codec.encode_tensor(torch.zeros(8, dtype=torch.int8)).data
    if kind != "zeros":  # as many distances as may be, with a palette of one value
        gaps = positions.encode_gaps(positions.plan_gaps(np.arange(1, count, 2), count))
        data = bytes([0b0110, 1, 1]) + gaps
    container.write_container(tmp_path / "x", container.Container([container.Entry("w", (count,), torch.int8, data)]))
    assert (tmp_path / "x").stat().st_size < 200
    tracemalloc.start()
    loaded = load_compressed(tmp_path / "x")["w"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert int(loaded.sum()) == (0 if kind == "zeros" else count // 2)
    assert peak < 512e6


@pytest.mark.parametrize("kind", ["zeros", "ones", "sparse", "scattered"])
def test_tensors_of_next_to_nothing_come_back_however_large_they_are(kind, tmp_path):
    x = torch.zeros(20_000_000, dtype=torch.int8)
    if kind == "ones":
        x += 1
    elif kind != "zeros":
        x[:: 10_000_019 if kind == "sparse" else 50_021] = 3
    report = save_compressed({"w": x}, tmp_path / "x.effnn")
    assert report.bytes < 50_000
    assert torch.equal(load_compressed(tmp_path / "x.effnn")["w"], x)


def _mutations(data, rng):
    """Flipped bits, cuts, splices, and header and index edits; with the checksum right or wrong."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    kinds = ("flip", "cut", "splice", "body flip", "body splice", "index digit", "head digit")
    for i in range(2400):
        kind, damaged = kinds[i % len(kinds)], bytearray(data)
        if kind in ("flip", "body flip"):
            for _ in range(rng.integers(1, 5)):
                damaged[rng.integers(start if kind == "body flip" else 0, len(data))] ^= 1 << rng.integers(8)
        elif kind == "cut":
            del damaged[rng.integers(len(data)) :]
        elif kind in ("splice", "body splice"):
            low, size = rng.integers(start, len(data) - 4), rng.integers(1, 30)
            damaged[low : low + rng.integers(size)] = rng.bytes(size)
        elif kind == "head digit":
            digits = [place for place in range(8, start) if chr(data[place]).isdigit()]
            damaged[rng.choice(digits)] = ord(str(rng.integers(10)))
        if kind.startswith("body"):
            yield rewritten(data, bytes(damaged[start:-4]))
        elif kind == "index digit":
            yield with_index(data, lambda index: _digit_changed(json.dumps(index).encode(), rng))
        else:
            yield bytes(damaged)


def _digit_changed(text, rng):
    changed = bytearray(text)
    digits = [place for place, letter in enumerate(text) if chr(letter).isdigit()]
    for _ in range(rng.integers(1, 4)):
        changed[rng.choice(digits)] = ord(str(rng.integers(10)))
    return bytes(changed)


def test_of_thousands_of_mutations_none_crashes_or_takes_memory(file, network):
    rng, data, path = np.random.default_rng(0), file.read_bytes(), file.with_name("mutated")
    state, refused = network.state_dict(), 0
    tracemalloc.start()
    for mutated in _mutations(data, rng):
        path.write_bytes(mutated)
        try:
            back = load_compressed(path)
            # Right checksum, other values: an edit, not damage. Without one, everything is as it was.
            if zlib.crc32(mutated[:-4]) != struct.unpack("<I", mutated[-4:])[0] or mutated == data:
                assert all(same_bits(back[name], x) for name, x in state.items())
        except ArtifactError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 1800
    assert peak < 64e6
