"""Weights that other programs wrote: read whatever is around them, or refused in words, in little memory."""

import argparse
import collections
import io
import json
import pathlib
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
from helpers import Tied
from safetensors.torch import save_file, save_model
from torch import nn

from lightning_effnn._checkpoints import is_compressed, read_checkpoint
from lightning_effnn.compression import save_compressed


class Settings:
    """A class of the user's own, as hyperparameters have them."""

    def __init__(self):
        self.depth = 3


@pytest.fixture
def state():
    torch.manual_seed(0)
    return nn.Linear(3, 2).state_dict()


def same(found, state):
    return found.keys() == state.keys() and all(torch.equal(found[name], x) for name, x in state.items())


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("around", [{}, {"epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}])
@pytest.mark.parametrize("key", ["", "model", "state_dict", "model_state_dict"])
def test_dictionaries_are_found_where_training_scripts_put_them(key, around, legacy, state, tmp_path):
    content = {key: state} | around if key else state
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    found = read_checkpoint(tmp_path / "x.pth")
    assert list(found) == [key]
    assert same(found[key], state)


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_around_the_weights_are_passed_over_and_never_made(legacy, state, tmp_path, monkeypatch):
    rest = {"path": pathlib.Path("x"), "arguments": argparse.Namespace(lr=1.0), "own": Settings(), "rng": np.float64(3),
            "state of numpy": np.random.get_state(), "made": collections.defaultdict(list)}  # fmt: skip
    content = {"pytorch-lightning_version": "2.0", "state_dict": state, "hyper_parameters": rest}
    torch.save(content, tmp_path / "x.ckpt", _use_new_zipfile_serialization=not legacy)
    monkeypatch.setattr(Settings, "__setstate__", lambda *_: pytest.fail("made"), raising=False)
    assert same(read_checkpoint(tmp_path / "x.ckpt")["state_dict"], state)
    with pytest.raises(Exception, match="Weights only load failed"):  # what is passed over here stays refused elsewhere
        torch.load(tmp_path / "x.ckpt", weights_only=True)


def test_of_a_lightning_checkpoint_it_is_the_module_alone(state, tmp_path):
    content = {"pytorch-lightning_version": "2.0", "state_dict": state, "callbacks": {"EMA": {"weights": state}}}
    torch.save(content, tmp_path / "x.ckpt")
    assert list(read_checkpoint(tmp_path / "x.ckpt")) == ["state_dict"]


def test_what_save_model_left_out_is_put_back(tmp_path):
    model = Tied()
    save_model(model, tmp_path / "x.safetensors")
    assert same(read_checkpoint(tmp_path / "x.safetensors")[""], model.state_dict())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_put_together(suffix, tmp_path):
    state = {f"{n}.weight": torch.full((2, 2), float(n)) for n in range(5)}
    places = {}
    for number, names in enumerate((["0.weight", "3.weight"], ["1.weight", "2.weight", "4.weight"])):
        shard = f"model-0000{number + 1}-of-00002.{suffix}"
        part = {name: state[name] for name in names}
        (save_file if suffix == "safetensors" else torch.save)(part, tmp_path / shard)
        places |= dict.fromkeys(names, shard)
    index = tmp_path / f"model.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 80}, "weight_map": places}, indent=2))
    assert same(read_checkpoint(index)[""], state)
    (tmp_path / shard).unlink()
    with pytest.raises(ValueError, match=r"'model-00002-of-00002.*' which is not beside it|which is not beside it"):
        read_checkpoint(index)


def test_a_file_is_read_for_what_it_is_whatever_it_is_called(state, tmp_path):
    save_file(state, tmp_path / "pytorch_model.bin")
    torch.save(state, tmp_path / "x.safetensors")
    for name in ("pytorch_model.bin", "x.safetensors"):
        assert same(read_checkpoint(tmp_path / name)[""], state)


def test_compressed_networks_are_told_from_other_safetensors(state, tmp_path):
    save_compressed(state, tmp_path / "x.bin")
    save_file(state, tmp_path / "y.effnn")
    assert [is_compressed(tmp_path / name) for name in ("x.bin", "y.effnn", "nothing")] == [True, False, False]


def saved(content, **how):
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def scripted():
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def archive(**records):
    buffer = io.BytesIO()
    np.savez(buffer, **records)
    return buffer.getvalue()


WHOLE = {"weight": torch.ones(50, 50)}
FOREIGN = {
    "empty": (lambda: b"", "it is empty"),
    "text": (lambda: b"hello" * 100, "neither safetensors nor a file of torch.save"),
    "short": (lambda: b"PK", "neither safetensors nor a file of torch.save, or cut short"),
    "zip cut": (lambda: saved(WHOLE)[:5000], "cut or damaged"),
    "legacy cut": (lambda: saved(WHOLE, _use_new_zipfile_serialization=False)[:-50], "damaged or cut"),
    "legacy cut early": (lambda: saved(WHOLE, _use_new_zipfile_serialization=False)[:80], "damaged or cut"),
    "safetensors cut": (lambda: struct.pack("<Q", 40) + b'{"w":{"dtype":"F32","shape":[2],"data_off', "damaged or cut"),
    "pickle": (lambda: b"\x80\x04]\x94.", "a pickle, but none that torch.save wrote"),
    "numpy": (lambda: archive(x=np.ones(3)), "an archive of NumPy arrays"),
    "script": (scripted, "TorchScript: save the weights by themselves"),
    "pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
    "page": (lambda: b"\n<!DOCTYPE html><html></html>", "a web page"),
    "keras": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(90), "HDF5"),
    "json": (lambda: b'{"weights": 3}', "without a weight_map"),
    "deep json": (lambda: b'{"a":' * 100_000, "damaged"),
    "module": (lambda: saved(nn.Linear(2, 2)), r"whole object, torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"),
    "module inside": (lambda: saved({"model": nn.Linear(2, 2), "epoch": 3}), r"'model' \(torch\.nn.*Linear\), 'epoch'"),
    "list": (lambda: saved([1]), "it has a list"),
    "nothing": (lambda: saved({}), "it has nothing"),
    "set": (lambda: saved({"model": frozenset({1})}), "holds no state_dict"),
}


@pytest.mark.parametrize(("make", "said"), FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_or_damaged_file_is_told_what_it_is(make, said, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(make())
    with pytest.raises(ValueError, match=said) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "weights_only" not in str(caught.value)  # torch advises to trust the file


@pytest.mark.parametrize("shard", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_shards_are_in_the_folder_of_their_index(shard, tmp_path):
    (tmp_path / "x.index.json").write_text(json.dumps({"weight_map": {"w": shard}}))
    with pytest.raises(ValueError, match="shards lie in the folder of their index"):
        read_checkpoint(tmp_path / "x.index.json")


def test_an_index_that_names_itself_is_no_shard(tmp_path):
    (tmp_path / "x.index.json").write_text('{"weight_map": {"w": "x.index.json"}}')
    with pytest.raises(ValueError, match="neither safetensors nor"):
        read_checkpoint(tmp_path / "x.index.json")


def number(n):
    return b"J" + struct.pack("<i", n)


def text(s):
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def tensor(elements, size, stride):
    """The program of a tensor in a file of torch."""
    storage = b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(elements) + b"tQ"
    shape = number(0) + number(size) + b"\x85" + number(stride) + b"\x85"
    return b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + shape + b"\x89ccollections\nOrderedDict\n)RtR"


def made_by(program, kind=zipfile.ZIP_STORED, data=bytes(16)):
    """A file of torch whose one entry is what ``program`` leaves on the stack."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", kind) as file:
        file.writestr("x/data.pkl", b"\x80\x02}" + text("w") + program + b"s.")
        file.writestr("x/byteorder", "little")
        file.writestr("x/data/0", data)
        file.writestr("x/version", "3\n")
    return buffer.getvalue()


MUCH = 1 << 28  # 1 GiB of float32
BOMBS = {
    "a tensor beyond its storage": made_by(tensor(4, MUCH, 1)),
    "a storage beyond its record": made_by(tensor(MUCH, MUCH, 1)),
    "a new tensor": made_by(b"ctorch\nFloatTensor\n" + number(MUCH) + b"\x85R"),
    "bytes": made_by(b"c__builtin__\nbytearray\n" + number(1 << 30) + b"\x85R"),
    "bytes that double": made_by(
        b"c_codecs\nencode\n" * 26 + text("a" * 64) + text("latin1") + b"\x86R" + (text("hex_codec") + b"\x86R") * 25
    ),
    "a compressed record": made_by(tensor(MUCH // 4, MUCH // 4, 1), zipfile.ZIP_DEFLATED, bytes(MUCH)),
    "a header": struct.pack("<Q", 1 << 40) + b'{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}',
    "an element count": struct.pack("<Q", 64)
    + b'{"w":{"dtype":"F32","shape":[268435456],"data_offsets":[0,4]}}'.ljust(64)
    + bytes(4),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_small_file_that_asks_for_much_is_refused_before_it_has_it(bomb, tmp_path):
    path = tmp_path / "x.pt"
    path.write_bytes(bomb)
    assert len(bomb) < 1_100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"x\.pt"):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_views_of_one_storage_are_no_claim(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole, "b": whole.T, "c": whole[:1].expand(5, 4), "d": torch.empty(0)}, tmp_path / "x.pt")
    found = read_checkpoint(tmp_path / "x.pt")[""]
    assert torch.equal(found["b"], whole.T)
    assert torch.equal(found["c"], whole[:1].expand(5, 4))


def test_tensors_are_mapped_not_read(tmp_path):
    torch.save({"w": torch.zeros(1 << 25)}, tmp_path / "x.pt")
    save_file({"w": torch.zeros(1 << 25)}, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        before = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        found = read_checkpoint(tmp_path / name)
        assert (int(pathlib.Path("/proc/self/statm").read_text().split()[1]) - before) * 4096 < 32e6
        assert float(found[""]["w"][-1]) == 0.0
