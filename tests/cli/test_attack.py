"""``effnn attack``: ready weights, data from a file or a DataModule, a table."""

import csv
import io
import pickle
import resource
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lightning_effnn.cli.main import main
from lightning_effnn.modules import SmallCNN
from lightning_effnn.robustness import TracedEnergy

X = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
QUICK = ["--steps", "3", "--limit", "4"]


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_file(SmallCNN().state_dict(), tmp_path / "net.safetensors")
    save_file({"x": X, "y": torch.arange(5)}, tmp_path / "data.safetensors")
    np.savez(tmp_path / "data.npz", images=X.numpy())
    return tmp_path


def attack(folder, data, *more):
    model = ["--model", "lightning_effnn.modules:SmallCNN"]
    return main(["attack", str(folder / "net.safetensors"), *model, "--data", str(data), *QUICK, *more])


def test_the_table_holds_natural_and_crafted_inputs(folder, capsys):
    rows, plot = folder / "rows.csv", folder / "layers.png"
    assert attack(folder, folder / "data.safetensors", "--eps", "0.2", "--csv", str(rows), "--plot", str(plot)) == 0
    printed = capsys.readouterr().out
    table = list(csv.DictReader(rows.open()))
    assert [row["inputs"] for row in table] == ["natural", "random", "lbfgs", "pgd", "genetic"]
    assert all(row["inputs"] in printed for row in table)
    energies = [float(row["energy_uJ"]) for row in table]
    assert [float(row["gain"]) for row in table] == pytest.approx([e / energies[0] for e in energies])
    assert table[0]["accuracy"]
    net = SmallCNN().eval()
    torch.manual_seed(0)
    net.load_state_dict(SmallCNN().state_dict())
    assert float(table[0]["energy_uJ"]) == pytest.approx(float(TracedEnergy(net)(X[:4]).mean()), rel=1e-5)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_labels_there_is_no_accuracy(folder):
    rows = folder / "rows.csv"
    assert attack(folder, folder / "data.npz", "--attacks", "pgd", "--eps", "none", "--csv", str(rows)) == 0
    natural, pgd = csv.DictReader(rows.open())
    assert not natural["accuracy"]
    assert float(pgd["energy_uJ"]) > float(natural["energy_uJ"])


def test_a_data_module_gives_its_test_images(folder, capsys):
    pytest.importorskip("sklearn")
    assert attack(folder, "lightning_effnn.data:DigitsDataModule", "--attacks", "random") == 0
    assert "4 inputs on eyeriss_like" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("data", "more", "words"),
    [
        ("data.npz", ["--eps", "0"], "--eps 0"),
        ("data.npz", ["--eps", "8/0"], "--eps 8/0"),
        ("data.npz", ["--steps", "0"], "--steps 0"),
        ("data.npz", ["--attacks", "magic"], "'magic'"),
        ("data.npz", ["--accelerator", "abacus"], "abacus"),
        ("missing.npz", [], "does not exist"),
        ("bytes.npz", [], "uint8: one floating-point array"),
        ("range.npz", [], "inputs in [0, 1] are needed"),
        ("objects.npz", [], "cannot be read as arrays alone"),
        ("torn.npz", [], "cannot be read as arrays alone"),
        ("data.csv", [], "name a .npz or .safetensors file"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(folder, capsys, data, more, words):
    np.savez(folder / "bytes.npz", x=(255 * X).byte().numpy())
    np.savez(folder / "range.npz", x=(3 * X).numpy())
    np.savez(folder / "objects.npz", x=np.array([{"a": 1}], dtype=object))
    (folder / "torn.npz").write_bytes(b"PK\x03\x04" + bytes(20))
    assert attack(folder, folder / data, *more) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_nothing_is_unpickled(folder, capsys):
    class Trap:
        def __reduce__(self):
            return (print, ("it ran",))

    path = folder / "net.pt"
    path.write_bytes(pickle.dumps(Trap(), protocol=2))
    arguments = ["attack", str(path), "--model", "lightning_effnn.modules:SmallCNN", "--data", str(folder / "data.npz")]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert "it ran" not in output.out
    assert "cannot be read as weights" in output.err


def claiming(shape):
    """A .npy file of 16 numbers whose header says that it is of ``shape``."""
    file = io.BytesIO()
    np.save(file, np.zeros(16, dtype=np.float32))
    old = file.getvalue()
    new = str(shape).encode()
    at = old.index(b"(16,)")
    return old[:at] + new + old[at + 5 :].replace(b" " * (len(new) - 5), b"", 1)


@pytest.mark.parametrize("kind", ["compressed", "claimed"])
def test_an_archive_that_asks_for_much_is_refused(folder, capsys, kind):
    with zipfile.ZipFile(folder / "much.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        if kind == "claimed":
            archive.writestr("x.npy", claiming((1 << 20, 1 << 22)))
        else:
            with archive.open("x.npy", "w") as array:
                for _ in range(320):
                    array.write(bytes(1 << 20))
    assert (folder / "much.npz").stat().st_size < 400_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert attack(folder, folder / "much.npz") == 2
    assert "much.npz cannot be read as arrays alone" in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB
