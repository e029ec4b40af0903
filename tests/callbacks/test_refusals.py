from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_effnn import callbacks
from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor, LowPrecisionSearch
from lightning_effnn.callbacks._batches import inputs_of
from lightning_effnn.recipes.benchmarks._every_callback import plane


class FSDPStrategy:
    pass


MADE = {
    "PDEResidualLoss": lambda cls: cls(plane(8)),
    "LowPrecisionSearch": lambda cls: cls(cost="bits"),
}
EVERY = [MADE.get(name, lambda cls: cls())(getattr(callbacks, name)) for name in callbacks.__all__]
every_callback = pytest.mark.parametrize("callback", EVERY, ids=lambda callback: type(callback).__name__)


@every_callback
def test_sharded_weights_are_refused_with_the_name_of_whoever_needs_them_whole(callback):
    trainer = SimpleNamespace(strategy=FSDPStrategy(), max_epochs=4)
    model = SimpleNamespace(automatic_optimization=True)
    if isinstance(callback, HardwareEnergyMonitor):
        callback.setup(trainer, model, "fit")
        return
    with pytest.raises(MisconfigurationException, match=f"{type(callback).__name__} needs whole weights, and FSDP"):
        callback.setup(trainer, model, "fit")


@every_callback
def test_states_are_kept_apart_by_class_and_prefix(callback):
    assert callback.state_key == f"{type(callback).__name__}[{callback.prefix}]"


@pytest.mark.parametrize("callback", [FocusedCompression(), LowPrecisionSearch(cost="bits")])
def test_what_no_fit_has_begun_lets_go_of_nothing(callback):
    callback.on_exception(None, None, RuntimeError())
    callback.teardown(None, None, "fit")


def test_nothing_is_saved_before_a_fit(tmp_path):
    with pytest.raises(RuntimeError, match="FocusedCompression has no weights yet"):
        FocusedCompression().save(torch.nn.Linear(2, 2), tmp_path / "x.effnn")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("batch", "floating", "words"),
    [
        ({"x": torch.ones(2)}, False, "begins with a dict: somebody needs a tensor of inputs"),
        ([], False, "begins with a list"),
        (
            [torch.ones(2, dtype=torch.long)],
            True,
            "a tensor of int64: somebody needs a tensor of floating-point inputs",
        ),
    ],
)
def test_a_batch_without_inputs_is_named(batch, floating, words):
    with pytest.raises(TypeError, match=words):
        inputs_of(batch, "somebody", floating=floating)


def test_inputs_are_the_batch_or_its_first_part():
    x = torch.ones(2, dtype=torch.long)
    assert inputs_of(x, "somebody") is inputs_of((x, 1), "somebody") is x
