"""Ctrl-C and exceptions leave the user's module usable, and the same callback can be fitted again."""

import lightning as L
import pytest
import torch
from callback_cases import BATCHES, CASES, EPOCHS, equal_states, hooks, loader, network, trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from lightning_effnn.callbacks import FocusedCompression

MOMENTS = ["on_train_batch_start", "on_before_backward", "on_before_optimizer_step", "on_validation_batch_start"]


class Breaks(L.Callback):
    """Raises in a hook, late in the fit."""

    def __init__(self, hook, error):
        def raises(trainer, *_):
            if trainer.current_epoch == 2 and not trainer.sanity_checking:
                raise error

        setattr(self, hook, raises)


class StepBreaks(L.Callback):
    """Raises within the optimiser's step."""

    def on_train_start(self, trainer, pl_module):
        def raises(*_):
            if trainer.current_epoch == 2:
                raise RuntimeError("my own words")

        trainer.optimizers[0].register_step_post_hook(raises)


def interrupted(callback, breaks, model, **kw):
    its = trainer([*breaks, callback], **kw)
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        its.fit(model, loader(), loader(2))


def assert_usable(model):
    assert "training_step" not in model.__dict__
    assert not hooks(model)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    trainer([], epochs=1).fit(model, loader(), loader(2))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_leaves_the_module_usable(case, moment, tmp_path):
    model = network()
    interrupted(case.make(tmp_path), [Breaks(moment, KeyboardInterrupt())], model)
    assert_usable(model)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_exception_in_the_optimiser_leaves_the_module_usable(case, tmp_path):
    model = network()
    interrupted(case.make(tmp_path), [StepBreaks()], model)
    assert_usable(model)


def test_activations_are_rounded_no_more_after_an_exception():
    model = network()
    callback = FocusedCompression(0.5, prune=(0.0, 0.2), quantize=(0.2, 0.6), activations=8)
    interrupted(callback, [Breaks("on_train_batch_start", RuntimeError())], model)
    assert_usable(model)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_callback_serves_another_fit(case, tmp_path):
    """after an exception, and after a fit that ended: as a new one would, on a new module"""
    callback, expected, second, third = case.make(tmp_path), network(), network(), network()
    torch.manual_seed(2)
    trainer([case.make(tmp_path)]).fit(expected, loader(), loader(2))
    interrupted(callback, [Breaks("on_train_batch_start", RuntimeError())], network())
    for model in (second, third):
        torch.manual_seed(2)
        trainer([callback]).fit(model, loader(), loader(2))
        assert equal_states(model, expected)
        assert torch.equal(model.eval()(next(iter(loader()))[0]), expected.eval()(next(iter(loader()))[0]))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_saved_on_an_exception_resumes_bit_identical(case, tmp_path):
    """with the same trainer's callback, as one does in a notebook"""
    whole, model = network(), network()
    torch.manual_seed(2)
    trainer([case.make(tmp_path)]).fit(whole, loader(), loader(2))
    callback = case.make(tmp_path)
    torch.manual_seed(2)
    breaks = [Breaks("on_train_batch_start", RuntimeError()), OnExceptionCheckpoint(tmp_path)]
    interrupted(callback, breaks, model, enable_checkpointing=True)
    again = trainer([callback])
    again.fit(model, loader(), loader(2), ckpt_path=tmp_path / "on_exception.ckpt")
    assert again.global_step == EPOCHS * BATCHES
    assert equal_states(model, whole)
