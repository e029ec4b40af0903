"""What is written: whole or not at all, where links lead, with the rights that any program would give it."""

import ast
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from lightning_effnn import hardware
from lightning_effnn._files import descriptor, is_taken, write_figure, write_text, write_whole
from lightning_effnn.cli.artifacts import decompress
from lightning_effnn.cli.recipes import copy_recipe
from lightning_effnn.compression import load_compressed, save_compressed
from lightning_effnn.quantization import QuantizationPlan

ROOT = Path(__file__).parents[1]


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o027, 0o077])
def test_a_new_file_has_the_rights_that_open_gives(mask, umask, tmp_path):
    umask(mask)
    write_text(tmp_path / "ours", "x")
    (tmp_path / "theirs").write_text("x")
    assert mode_of(tmp_path / "ours") == mode_of(tmp_path / "theirs")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_a_file_that_is_replaced_keeps_its_rights(mode, umask, tmp_path):
    path = tmp_path / "kept"
    path.touch()
    path.chmod(mode)
    write_text(path, "new")
    assert (mode_of(path), path.read_text()) == (mode, "new")


def test_what_replaces_a_secret_is_secret_while_it_is_written(umask, tmp_path):
    path, seen = tmp_path / "secret", []
    path.touch(0o600)
    write_whole(path, lambda beside: seen.append(mode_of(beside)))
    assert seen == [0o600]


def test_links_stay_and_what_they_lead_to_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    target, first, second = tmp_path / "far" / "target.txt", tmp_path / "first.txt", tmp_path / "second.txt"
    second.symlink_to(first)
    first.symlink_to(Path("far") / "target.txt")
    for text in ("made", "replaced"):  # at first it leads nowhere
        write_text(second, text)
        assert target.read_text() == text
        assert first.is_symlink()
        assert second.is_symlink()
    with pytest.raises(ZeroDivisionError):
        write_whole(second, lambda beside: 1 / 0)
    assert target.read_text() == "replaced"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["far", "first.txt", "second.txt", "target.txt"]


def test_a_pipe_gets_all_of_it_and_stays(tmp_path):
    pipe, found = tmp_path / "pipe.effnn", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()), daemon=True)
    reader.start()
    save_compressed(nn.Linear(3, 2), pipe)
    reader.join(60)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    (tmp_path / "copy.effnn").write_bytes(found[0])
    assert list(load_compressed(tmp_path / "copy.effnn")) == ["weight", "bias"]


def test_a_pipe_gets_nothing_of_what_fails(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ZeroDivisionError):
        write_whole(pipe, lambda beside: (beside.write_text("half"), 1 / 0))  # would wait for a reader
    assert list(tmp_path.iterdir()) == [pipe]


def test_devices_take_what_is_written_without_being_asked_for(tmp_path):
    null = tmp_path / "null.yaml"
    null.symlink_to(os.devnull)
    assert not is_taken(null)
    copy_recipe("quickstart", str(null))
    QuantizationPlan(weights={"0.weight": 4}).save(null)
    assert null.is_symlink()
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_an_existing_file_is_left_alone_behind_a_link_too(tmp_path):
    save_compressed(nn.Linear(3, 2), tmp_path / "net.effnn")
    (tmp_path / "old").write_text("mine")
    (tmp_path / "link").symlink_to("old")
    with pytest.raises(Exception, match="exists"):
        decompress(str(tmp_path / "net.effnn"), str(tmp_path / "link"))
    assert (tmp_path / "old").read_text() == "mine"


def test_a_folder_is_refused_before_anything_is_worked_out(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
        write_whole(tmp_path, lambda beside: pytest.fail("written"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_protected_file_is_refused(tmp_path):
    (tmp_path / "kept").touch(0o400)
    with pytest.raises(PermissionError, match="protected"):
        write_text(tmp_path / "kept", "x")


def test_names_as_long_as_a_file_system_takes(tmp_path):
    for name in ("n" * 250 + ".txt", "ü" * 120 + ".txt"):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize("name", ["cost", "cost.svg"])
def test_a_figure_is_there_under_the_name_that_was_given(name, tmp_path):
    matplotlib = pytest.importorskip("matplotlib.figure")
    write_figure(tmp_path / name, matplotlib.Figure())
    assert (tmp_path / name).read_bytes().startswith(b"<?xml" if name.endswith("svg") else b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_report_is_utf_8_wherever_it_is_written(tmp_path):
    trace = hardware.trace(nn.Sequential(nn.Linear(4, 2)), torch.rand(1, 4))
    hardware.estimate(trace, "eyeriss_like").to_csv(tmp_path / "rows.csv")
    assert (tmp_path / "rows.csv").read_bytes().decode("utf-8").startswith("name")


def test_whatever_the_package_writes_goes_through_one_place():
    """Mechanisms and callbacks write by ``lightning_effnn._files`` alone, or into what it hands out."""
    writers = re.compile(r"^(write_text|write_bytes|savefig|save_file)$")
    sources = [*(ROOT / "lightning_effnn").rglob("*.py"), *(ROOT / "callbacks").glob("*.py")]
    for path in sources:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {
            id(node)
            for call in ast.walk(tree)
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "write_whole"
            for node in ast.walk(call)
        }
        for call in ast.walk(tree):
            name = getattr(getattr(call, "func", None), "attr", getattr(getattr(call, "func", None), "id", ""))
            if isinstance(call, ast.Call) and writers.match(name) and id(call) not in inside:
                free = path.name == "_files.py" or (isinstance(call.func, ast.Name) and name == "write_text")
                scratch = path.name == "zigzag.py" or "buffer" in ast.unparse(call)  # a temporary folder, memory
                assert free or scratch, f"{path.relative_to(ROOT)}:{call.lineno} writes by {name}"


def run_effnn(*arguments, stdout):
    program = "import sys; from lightning_effnn.cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", program, *arguments], stdout=stdout, stderr=subprocess.PIPE)


@pytest.mark.parametrize("how", ["pipe", "file", "appended"])
def test_standard_output_gets_the_file_and_nothing_else(how, tmp_path):
    save_compressed(nn.Linear(3, 2), tmp_path / "net.effnn")
    arguments = ("decompress", str(tmp_path / "net.effnn"), "-o", "/dev/stdout")
    if how == "pipe":
        run = run_effnn(*arguments, stdout=subprocess.PIPE)
        found = run.stdout
    else:
        (tmp_path / "out").write_bytes(b"before")
        with (tmp_path / "out").open("ab" if how == "appended" else "wb") as out:
            run = run_effnn(*arguments, stdout=out)
        found = (tmp_path / "out").read_bytes()
    assert run.returncode == 0, run.stderr
    assert b"2 tensors" in run.stderr
    assert found.startswith(b"before") == (how == "appended")
    assert sorted(safetensors.torch.load(found.removeprefix(b"before"))) == ["bias", "weight"]


def test_open_descriptors_are_written_to_where_they_stand(tmp_path):
    link = tmp_path / "link"
    with (tmp_path / "log").open("wb", buffering=0) as log:
        log.write(b"one ")
        link.symlink_to(f"/dev/fd/{log.fileno()}")
        assert not is_taken(link)
        write_text(link, "two ")
        write_text(f"/proc/self/fd/{log.fileno()}", "three")
    assert (tmp_path / "log").read_text() == "one two three"
    assert link.is_symlink()
    assert [descriptor(name) for name in ("/dev/stdout", "/dev/fd/7", str(tmp_path / "log"), "/dev/null")] == [
        1, 7, None, None
    ]  # fmt: skip
