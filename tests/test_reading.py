"""Whatever a file holds, reading it gives a value or a clear error, soon, in bounded memory, and runs nothing."""

import ast
import copy
import io
import itertools
import pickle
import struct
import tracemalloc
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_effnn.callbacks import FocusedCompression, LowPrecisionSearch
from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.compress import load_checkpoint
from lightning_effnn.compression import ArtifactError, Projector, load_compressed, save_compressed
from lightning_effnn.hardware import Accelerator
from lightning_effnn.quantization import QuantizationPlan
from lightning_effnn.search.bits import BitSearch
from lightning_effnn.search.graph import BlockConfig, GraphNetConfig

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "lightning_effnn" / "hardware" / "presets"
fuzzed = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBER = itertools.count()

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(content, path=()):
    """Where there is something to change."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(content, data):
    """``content`` with one value replaced, or taken out."""
    path = data.draw(st.sampled_from(list(places(content))[1:]))
    content = copy.deepcopy(content)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()) or not isinstance(inner, dict):
        inner[path[-1]] = data.draw(values)
    else:
        del inner[path[-1]]
    return content


def written(folder, content):
    path = folder / f"{next(NUMBER)}.yaml"  # readers may remember a path
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


PLAN = {"weights": {"0.weight": 4, "2.weight": 8}, "activations": {"0": 8}}
CONFIG = yaml.safe_load(GraphNetConfig(in_channels=3, blocks=(BlockConfig(4, "gcn"), BlockConfig(2, "gat"))).to_yaml())
READERS = {
    "accelerator": (lambda path: Accelerator.load(path), yaml.safe_load((PRESETS / "tpu_like.yaml").read_text())),
    "plan": (QuantizationPlan.load, PLAN),
    "graph network": (GraphNetConfig.from_yaml, CONFIG),
}
readers = pytest.mark.parametrize(("read", "content"), READERS.values(), ids=READERS)


@readers
@fuzzed
@given(data=st.data())
def test_a_changed_yaml_file_is_read_or_refused(read, content, data, tmp_path):
    with suppress(ValueError):
        read(written(tmp_path, changed(content, data)))


@readers
@fuzzed
@given(text=st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_read_or_refused(read, content, text, tmp_path):
    path = tmp_path / f"{next(NUMBER)}.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with suppress(ValueError):
        assert isinstance(read(path), QuantizationPlan)  # an empty one is written as nothing


BOMB = "a0: &a0 [lol]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 40))
HOSTILE = {
    "aliases": BOMB,
    "merges": "a: &a {x: 1}\n" + "".join(f"b{n}:\n  <<: *a\n" for n in range(5)),
    "depth": "[" * 100_000,
    "deep and whole": "[" * 2000 + "]" * 2000,
    "tag": "!!python/object/apply:os.system ['touch HACKED']",
    "size": "a: " + "x" * 5_000_000,
    "number": "weights: {a: " + "9" * 5000 + "}",
    "date": "weights: {a: 2026-99-99}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@readers
def test_hostile_yaml_is_refused_in_little_memory(read, content, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, text)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="."):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert not (tmp_path / "HACKED").exists()


@pytest.fixture(scope="module")
def effnn(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("effnn") / "x.effnn"
    model = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5))
    projector = Projector(model)
    projector.prune(0.5)
    projector.quantize(1.0)
    save_compressed(model, path)
    return path.read_bytes()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_changed_effnn_file_with_a_right_checksum_is_read_or_refused(effnn, data, tmp_path):
    whole = bytearray(effnn[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(8, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.effnn"
    path.write_bytes(bytes(whole) + struct.pack("<I", zlib.crc32(bytes(whole))))
    tracemalloc.start()
    try:
        state = load_compressed(path)
        assert sum(x.numel() for x in state.values()) < 1e6
    except ArtifactError:
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 100e6


class Malicious:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("HACKED"),)


def malicious(kind):
    """A file whose unpickling would run something."""
    if kind == "pickle":
        return pickle.dumps(Malicious())
    buffer = io.BytesIO()
    torch.save({"state_dict": {"weight": Malicious()}}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "torch"])
@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.safetensors", "x.effnn", "x.yaml"])
def test_a_malicious_file_runs_nothing(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(malicious(kind))
    readers = {
        ".effnn": load_compressed,
        ".yaml": QuantizationPlan.load,
    }
    read = readers.get(path.suffix, lambda path: load_checkpoint(str(path), nn.Linear(2, 2)))
    with pytest.raises((UsageError, ValueError)):
        read(path)
    assert not (tmp_path / "HACKED").exists()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))


@cache
def pruned_state():
    projector = Projector(network())
    projector.prune(0.5)
    projector.quantize(1.0)
    return projector.state_dict()


@cache
def surveyed_state():
    model = network()
    search = BitSearch(model, (2, 8), (8,))
    search.survey(lambda: model(torch.ones(3, 4)), "bits")
    return search.state_dict()


LOADS = {
    pruned_state: (
        lambda state: Projector(network()).load_state_dict(state),
        (ValueError, TypeError, RuntimeError, KeyError, AttributeError, IndexError),
    ),
    surveyed_state: (lambda state: BitSearch(network(), (2, 8), (8,)).load_state_dict(state), (ValueError,)),
}
"""What takes a state, and its errors, by what makes one; making it takes longer than what is tried on copies of it."""


@pytest.mark.parametrize("made", LOADS)
@fuzzed
@given(data=st.data())
def test_a_changed_state_of_a_callback_raises_an_error_of_a_known_kind(made, data):
    state = copy.deepcopy(made())
    with_torch = data.draw(st.booleans())
    path = data.draw(st.sampled_from(list(places(state))[1:]))
    inner = state
    for key in path[:-1]:
        inner = inner[key]
    if not isinstance(inner, dict | list):
        return
    inner[path[-1]] = torch.zeros(data.draw(st.integers(0, 3))) if with_torch else data.draw(values)
    load, errors = LOADS[made]
    with suppress(*errors):
        load(state)


@pytest.mark.parametrize("callback", [FocusedCompression(), LowPrecisionSearch(cost="bits")])
def test_states_load_with_weights_only(callback):
    buffer = io.BytesIO()
    torch.save(callback.state_dict() | {"projector": pruned_state(), "search": surveyed_state()}, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)


UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "marshal.loads", "shelve.open",
          "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"}  # fmt: skip


@pytest.mark.parametrize("folder", ["lightning_effnn", "callbacks", "recipes"])
def test_nothing_is_unpickled(folder):
    seen = 0
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name, seen = ast.unparse(node.func), seen + 1
            arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert name not in UNSAFE, f"{path}:{node.lineno}"
            assert arguments.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
            if name == "torch.load":
                assert arguments.get("weights_only") == "True", f"{path}:{node.lineno}"
    assert seen > 100
