"""What every test shares: the real data's folder, quiet loggers, and nothing sent anywhere."""

import logging
import os
from collections import Counter
from pathlib import Path

import hypothesis
import lightning  # noqa: F401 - sets its loggers' levels, which the next lines overrule
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lightning_effnn.hardware.tracing import dispatch

pytest.register_assert_rewrite("callback_cases", "features_training", "features_trainer")
MOST_STEPS = 32
"""Steps of one optimiser after which a test is said to train; shorter fits are there for something else."""

if not os.environ.get("OMP_NUM_THREADS"):
    torch.set_num_threads(1)  # tensors are small here; a second thread waits for a core that others use
for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "wandb"):
    logging.getLogger(name).setLevel(logging.ERROR)
# How long an example takes says how busy the machine is. Everybody tries the same examples, so that a change is red
# for what it changed; --hypothesis-profile=random looks for new ones.
hypothesis.settings.register_profile("random", deadline=None)
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")


@pytest.fixture(scope="session", autouse=True)
def _traces_are_strict():
    patch = pytest.MonkeyPatch()
    patch.setattr(dispatch, "STRICT", True)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _wandb_stays_offline(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("WANDB_MODE", "offline")
    patch.setenv("WANDB_SILENT", "true")
    patch.setenv("WANDB_DIR", str(tmp_path_factory.mktemp("wandb")))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _what_trains_is_marked(request):
    if {"trains", "slow"} & {mark.name for mark in request.node.iter_markers()}:
        yield
        return
    steps = Counter()
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: steps.update([optimizer]))
    yield
    hook.remove()
    most = max(steps.values(), default=0)
    assert most <= MOST_STEPS, f"an optimiser takes {most} steps: mark the test with pytest.mark.trains"


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data, for tests that need it."""
    folder = os.environ.get("EFFNN_DATA")
    if not folder:
        pytest.skip("EFFNN_DATA is not set: it names the folder of the real data")
    return Path(folder)
