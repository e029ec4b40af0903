"""Each callback in a fit on another device, with its promise kept."""

import pytest
import torch
from callback_cases import CASES, fit, network
from lightning.pytorch.callbacks import ModelCheckpoint
from pretend_trainer import PretendStrategy


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fit_on_another_device(case, device, tmp_path):
    run = fit(case, tmp_path, strategy=PretendStrategy(device=device))
    assert next(run.model.parameters()).device.type == "cpu"  # the Trainer puts it back


@pytest.mark.parametrize("case", [case for case in CASES if case.stateful], ids=lambda case: case.name)
def test_resume_on_another_device(case, device, tmp_path):
    folder = tmp_path / "first"
    saved = ModelCheckpoint(folder, save_last=True, every_n_epochs=1)
    fit(case, tmp_path, others=[saved], strategy=PretendStrategy(device=device), enable_checkpointing=True)
    again = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, every_n_epochs=1)
    torch.manual_seed(0)
    fit(case, tmp_path, others=[again], strategy=PretendStrategy(device=device), enable_checkpointing=True,
        ckpt_path=str(folder / "last.ckpt"), epochs=5, model=network())  # fmt: skip
