import csv

import pytest
import torch

from lightning_effnn import hardware
from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.main import main
from lightning_effnn.cli.profile import InputSpec

MODELS = """
import lightning as L
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)
    def forward(self, x):
        return self.head(self.conv(x).mean((2, 3)))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 2)
    def forward(self, words, keep):
        return self.head(self.table(words)) * keep.unsqueeze(-1)

class Lit(L.LightningModule):
    def __init__(self, example):
        super().__init__()
        self.net = Net()
        self.example_input_array = example
    def forward(self, images):
        return self.net(images)

class Failing(Net):
    def forward(self, x):
        raise RuntimeError("my own bug")

built = Net()
numbers = [1, 2]
lit = Lit(torch.rand(2, 3, 8, 8))
lit_tuple = Lit((torch.rand(2, 3, 8, 8),))
lit_dict = Lit({"images": torch.rand(2, 3, 8, 8)})
lit_none = Lit(None)

def build():
    return Net()

def deep(depth):
    return Net()

def lazy():
    return nn.LazyLinear(3)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "effnn_models.py").write_text(MODELS)
    (tmp_path / "effnn_broken.py").write_text("import not_installed_anywhere\n")
    return tmp_path


IMAGE = ("--input", "1,3,8,8")


@pytest.mark.parametrize(
    "arguments",
    [
        ("build", *IMAGE),
        ("Net", *IMAGE),
        ("built", *IMAGE),
        ("lit",),
        ("lit_tuple",),
        ("lit_dict",),
        ("lit_none", *IMAGE),
        ("build", *IMAGE, "--accelerator", "tpu_like", "--batch-size", "4"),
        ("Words", "--input", "1,5:int64:10", "--input", "1,5:bool"),
    ],
    ids=" ".join,
)
def test_it_prints_what_the_model_costs(folder, capsys, arguments):
    target, *options = arguments
    assert main(["profile", f"effnn_models:{target}", *options]) == 0
    shown = capsys.readouterr().out
    assert "total" in shown
    assert "head" in shown


def test_table_csv_and_figure_agree_with_the_library(folder, capsys):
    pytest.importorskip("matplotlib")
    options = [*IMAGE, "--csv", "cost.csv", "--plot", "cost.png", "--depth", "1"]
    assert main(["profile", "effnn_models:build", *options]) == 0
    shown = capsys.readouterr().out
    assert "cost.csv" in shown
    assert "cost.png" in shown
    with open("cost.csv") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["macs"]) for row in rows) == 4 * 3 * 9 * 36 + 4 * 2
    assert (folder / "cost.png").stat().st_size > 1000


def test_it_says_whether_batches_of_other_sizes_cost_the_same(folder, capsys):
    assert main(["profile", "effnn_models:build", *IMAGE, "--check-batches"]) == 0
    assert "checked: in batches of 1, 2, 3, 5 copies" in capsys.readouterr().out


def test_inputs_without_a_batch_cannot_be_checked(folder, capsys):
    (folder / "effnn_scalar.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    example_input_array = (2.0,)\n"
        "    def forward(self, x):\n        return torch.ones(3) * x\n"
    )
    assert main(["profile", "effnn_scalar:Net", "--check-batches"]) == 2
    assert "--check-batches: the inputs hold no batch" in capsys.readouterr().err


def test_dtype_casts_the_model_and_its_inputs(folder, capsys):
    assert main(["profile", "effnn_models:build", *IMAGE, "--dtype", "bfloat16", "--csv", "half.csv"]) == 0
    assert main(["profile", "effnn_models:build", *IMAGE, "--csv", "full.csv"]) == 0
    energy = {}
    for name in ("half", "full"):
        with open(f"{name}.csv") as file:
            energy[name] = sum(float(row["energy_pJ"]) for row in csv.DictReader(file))
    assert energy["half"] < energy["full"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("build",), "no example batch"),
        (("lit_none",), "no example batch"),
        (("build", "--input", "0,3,8,8"), "empty batch"),
        (("build", "--input", "1,3,x"), "1,3,224,224"),
        (("build", "--input", "1,3:floaty"), "floaty"),
        (("build", *IMAGE, "--dtype", "floaty"), "floaty"),
        (("build", *IMAGE, "--accelerator", "eyeris"), "eyeriss_like"),
        (("build", *IMAGE, "--accelerator", "no.yaml"), "no.yaml"),
        (("build", *IMAGE, "--batch-size", "0"), "--batch-size"),
        (("build", *IMAGE, "--depth", "0"), "--depth"),
        (("build", *IMAGE, "--csv", "/proc/no/such.csv"), "such"),
        (("missing", *IMAGE), "missing"),
        (("numbers", *IMAGE), "list"),
        (("deep", *IMAGE), "depth"),
        (("lazy", "--input", "1,4"), "weight"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_use_is_one_message_and_code_2(folder, capsys, arguments, said):
    target, *options = arguments
    assert main(["profile", f"effnn_models:{target}", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize("target", ["no_such_module:x", "effnn_models", ":x", "effnn_models.sub:x"])
def test_a_target_that_cannot_be_imported_is_named(folder, capsys, target):
    assert main(["profile", target, *IMAGE]) == 2
    assert target.partition(":")[0] in capsys.readouterr().err


def test_what_a_module_fails_to_import_comes_out_as_it_is(folder):
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        main(["profile", "effnn_broken:x", *IMAGE])


def test_the_models_own_exception_comes_out_as_it_is(folder):
    with pytest.raises(RuntimeError, match="my own bug"):
        main(["profile", "effnn_models:Failing", *IMAGE])
    assert hardware.trace(torch.nn.Linear(2, 2), torch.rand(1, 2)) is not None


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1,3", InputSpec((1, 3))),
        ("4:int32", InputSpec((4,), torch.int32)),
        ("2,40:int64:10", InputSpec((2, 40), torch.int64, 10)),
    ],
)
def test_inputs_are_read_and_drawn(text, spec):
    assert InputSpec.parse(text) == spec
    drawn = spec.draw(torch.float16)
    assert drawn.shape == spec.shape
    assert drawn.dtype == (spec.dtype or torch.float16)
    if spec.dtype:
        assert drawn.min() >= 0
        assert drawn.max() < spec.below


@pytest.mark.parametrize("text", ["", ",", "1,-2", "1:int64:0", "1:int64:3:4", "a", "1:Tensor"])
def test_inputs_that_cannot_be_read_show_how(text):
    with pytest.raises(UsageError, match="--input"):
        InputSpec.parse(text)


STEPS_FIRST = """
import torch
from torch import nn

class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
    def forward(self, x):
        return self.head(x)

class Twisted(Rows):
    def forward(self, x):
        return super().forward(torch.ops.effnn_profile_test.twist(x))

@torch.library.custom_op("effnn_profile_test::twist", mutates_args=())
def twist(x: torch.Tensor) -> torch.Tensor:
    return x * 2

def recurrent():
    return nn.LSTM(4, 4)

def exported():
    return torch.export.export(Rows(), (torch.rand(5, 3, 4),)).module()
"""


@pytest.fixture(scope="module")
def steps_first(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("models")
    (folder / "effnn_steps_first.py").write_text(STEPS_FIRST)
    patch.syspath_prepend(str(folder))
    yield
    patch.undo()


@pytest.mark.parametrize(
    ("target", "options", "macs"),
    [
        ("Rows", (), 3 * 8),
        ("Rows", ("--batch-dim", "1"), 5 * 8),
        ("Rows", ("--batch-dim", "-2"), 5 * 8),
        ("Rows", ("--inferences", "15"), 8),
        ("exported", (), 3 * 8),
    ],
    ids=str,
)
def test_the_axis_and_the_inferences_of_the_input_can_be_said(steps_first, tmp_path, target, options, macs):
    rows = tmp_path / "rows.csv"
    arguments = [f"effnn_steps_first:{target}", "--input", "5,3,4", "--csv", str(rows), *options]
    assert main(["profile", *arguments]) == 0
    with rows.open() as file:
        assert sum(int(row["macs"]) for row in csv.DictReader(file)) == macs


def test_it_says_what_was_assumed_and_what_is_not_known(steps_first, capsys):
    assert main(["profile", "effnn_steps_first:recurrent", "--input", "5,3,4"]) == 0
    assert "assumed: axis 1 of the input" in capsys.readouterr().out
    assert main(["profile", "effnn_steps_first:Twisted", "--input", "5,3,4"]) == 0
    shown = capsys.readouterr().out
    assert "effnn_profile_test.twist.default in (root) (no rule" in shown
    assert "hardware.register_cost('effnn_profile_test::twist', rule)" in shown


@pytest.mark.parametrize(
    ("options", "said"), [(("--batch-dim", "3"), "--batch-dim 3"), (("--inferences", "0"), "--inferences 0")], ids=str
)
def test_a_wrong_axis_or_number_is_one_message(steps_first, capsys, options, said):
    assert main(["profile", "effnn_steps_first:Rows", "--input", "5,3,4", *options]) == 2
    assert said in capsys.readouterr().err
