"""The Python of the READMEs runs as it is written, and what it prints is meant for a reader."""

import re
from importlib.util import find_spec
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_effnn import hardware
from lightning_effnn.callbacks import EnergyGuardProfile, SpongeEvaluation, SpongeTraining

ROOT = Path(__file__).parents[2]


def python_of(readme):
    """The blocks, one after the other; a fit is cut short."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    whole = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert whole
    return whole.replace("max_epochs=100", "max_epochs=1")


def things_of_the_reader():
    """What the blocks take for granted: a model, data, and numbers of the reader's own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    images = torch.rand(24, 1, 8, 8)
    row = {"name": "fc", "kind": "gemm", "K": 3, "C": 144}
    return {
        "L": L, "torch": torch, "model": model, "x": images[:4], "images": images, "some": images.split(8),
        "loader": DataLoader(images, batch_size=8), "rows": [row], "bits": torch.full((2,), 4.0),
        "SpongeTraining": SpongeTraining, "SpongeEvaluation": SpongeEvaluation,
        "EnergyGuardProfile": EnergyGuardProfile,
        "energy_of": lambda texts: [float(len(set(text))) for text in texts], "alphabet": "abc",
        "batches": images.split(8), "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loss_of": lambda model, batch: model(batch).square().mean(), "ModelCheckpoint": ModelCheckpoint,
        "EarlyStopping": EarlyStopping,
        "sentences": ["ab", "ca"], "MyLayer": type("MyLayer", (nn.Module,), {}),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "readme",
    [
        "README.md",
        *(f"lightning_effnn/{part}/README.md" for part in ("hardware", "quantization", "compression", "robustness")),
    ],
)
def test_every_line_runs_and_tables_are_printed_as_such(readme, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("matplotlib")
    lines = python_of(readme).splitlines()
    if find_spec("zigzag") is None:
        lines = [line for line in lines if 'engine="zigzag"' not in line]
    exec(compile("\n".join(lines), readme, "exec"), things_of_the_reader())
    shown = capsys.readouterr().out
    assert " object at 0x" not in shown
    assert ("┏" in shown) == ("print(" in "\n".join(re.sub("#.*", "", line) for line in lines))


def test_reports_and_tables_are_their_text():
    trace = hardware.trace(nn.Sequential(nn.Linear(4, 2)), torch.rand(1, 4))
    report = hardware.estimate(trace, "eyeriss_like")
    assert str(report) == str(report.table())
    assert str(report).splitlines()[0].strip() == "Cost on eyeriss_like"
