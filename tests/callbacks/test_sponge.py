"""SpongeTraining and SpongeEvaluation in real fits."""

import warnings

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn.callbacks import (
    EnergyGuardProfile,
    FocusedCompression,
    HardwareEnergyMonitor,
    LowPrecisionSearch,
    SpongeEvaluation,
    SpongeTraining,
)
from lightning_effnn.data import DigitsDataModule
from lightning_effnn.modules import ImageClassifier, SmallCNN
from lightning_effnn.quantization import quantize_
from lightning_effnn.robustness import EnergyGuard, TracedEnergy

pytestmark = pytest.mark.trains


def loader(n=96, batch_size=16):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 10), batch_size)


def classifier():
    L.seed_everything(0, verbose=False)
    return ImageClassifier(SmallCNN(width=4), schedule="constant")


def fit(callbacks, model=None, epochs=2, data=None, ckpt_path=None, **kw):
    model = model or classifier()
    L.seed_everything(0, verbose=False)
    defaults = {"logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, **(defaults | kw),
    )  # fmt: skip
    loaders = {"datamodule": data} if data else {"train_dataloaders": loader(), "val_dataloaders": loader(32)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, **loaders, ckpt_path=ckpt_path)
    return trainer, model


def test_trained_against_sponges_the_worst_input_costs_less_than_natural_ones_did():
    def trained(*callbacks):
        L.seed_everything(0, verbose=False)
        model = ImageClassifier(SmallCNN(width=8), lr=5e-3)
        evaluation = SpongeEvaluation(100, attacks=("pgd", "genetic"), eps=0.3, limit=8, steps=12)
        trainer, _ = fit([*callbacks, evaluation], model, epochs=8, data=DigitsDataModule())
        return evaluation.report, float(trainer.callback_metrics["val/acc"])

    plain, _ = trained()
    defended, accuracy = trained(SpongeTraining(weight=3.0, eps=0.3, share=0.5))
    assert defended.worst.mean_uJ < 0.95 * plain.natural.mean_uJ  # seeds 0 and 1: 0.89 and 0.87 of it
    assert accuracy > 0.8


def test_keys_are_logged_and_the_step_is_given_back():
    training, evaluation = SpongeTraining(steps=2), SpongeEvaluation(1, attacks=("random",), limit=2)
    trainer, model = fit([training, evaluation])
    found = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("sponge/")}
    assert set(found) == {f"sponge/{key}" for key in ("penalty", "natural_uJ", "worst_uJ", "gain")}
    assert found["sponge/gain"] == pytest.approx(found["sponge/worst_uJ"] / found["sponge/natural_uJ"])
    assert 0 < found["sponge/penalty"] < 1
    assert "training_step" not in model.__dict__
    own = TracedEnergy(model, "eyeriss_like")(next(iter(loader(32)))[0][:2]).mean()
    assert found["sponge/natural_uJ"] == pytest.approx(float(own), rel=1e-5)


def test_evaluation_changes_nothing_in_the_fit(tmp_path):
    _, plain = fit([])
    _, watched = fit([SpongeEvaluation(1, attacks=("pgd", "genetic"), limit=2, steps=2)], logger=CSVLogger(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    (table,) = tmp_path.rglob("sponge_attacks.csv")
    assert table.read_text().splitlines()[0].startswith("inputs,energy_uJ")
    (figure,) = tmp_path.rglob("sponge_layers.png")
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_crafted_inputs_leave_running_statistics_alone():
    _, plain = fit([], epochs=1, max_steps=1)
    _, trained = fit([SpongeTraining(steps=1)], epochs=1, max_steps=1)
    for (name, mine), theirs in zip(plain.named_buffers(), trained.buffers(), strict=True):
        if "running" in name:
            assert torch.equal(mine, theirs), name


def test_crafted_inputs_leave_ranges_of_quantisers_alone():
    def ranges(*callbacks):
        model = classifier()
        attachment = quantize_(model, "W8A8")
        fit(list(callbacks), model, epochs=1, max_steps=1)
        return [quantizer.scale for quantizer in attachment.activations.values()]

    assert torch.equal(torch.stack(ranges()), torch.stack(ranges(SpongeTraining(attack="unbounded", steps=1))))


def test_a_resumed_fit_ends_bit_identical(tmp_path):
    def callbacks():
        return [SpongeTraining(attack=("pgd", "noise"), steps=2)]

    _, whole = fit(callbacks())
    fit([*callbacks(), ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")], enable_checkpointing=True)
    _, resumed = fit(callbacks(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


class Mapped(ImageClassifier):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx)}


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 2},
        {"precision": "bf16-mixed"},
        {"model": lambda: Mapped(SmallCNN(width=4), schedule="constant")},
        {"callbacks": lambda: [LowPrecisionSearch((4, 8), (8,), "bits")]},
    ],
    ids=["accumulate", "bf16", "dict", "search"],
)
def test_it_works_with(settings):
    settings = dict(settings)
    model = settings.pop("model", classifier)()
    others = settings.pop("callbacks", list)()
    trainer, _ = fit([*others, SpongeTraining(steps=1)], model, **settings)
    assert trainer.callback_metrics["sponge/penalty"] > 0


def test_it_composes_with_compression_and_the_monitor(tmp_path):
    monitors = [HardwareEnergyMonitor("eyeriss_like", stage="train") for _ in range(2)]
    fit([monitors[0]])
    compression = FocusedCompression(0.8, prune=(0.0, 0.4), quantize=(0.4, 0.7), export=tmp_path / "m.effnn")
    fit([monitors[1], SpongeTraining(steps=1), compression], epochs=4)
    assert monitors[1].report.macs == monitors[0].report.macs  # of the training step alone
    assert (tmp_path / "m.effnn").exists()


def test_a_guard_is_profiled_by_the_validation_as_it_runs(tmp_path):
    callback = EnergyGuardProfile(quantile=1.0, policy="flag", path=tmp_path / "guard.safetensors")
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    _, plain = fit([])
    _, model = fit([callback, checkpoint], enable_checkpointing=True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), model.parameters(), strict=True))
    own = EnergyGuard(model).profile(loader(32), quantile=1.0)
    saved = torch.load(checkpoint.last_model_path, weights_only=True)["callbacks"]["EnergyGuardProfile[guard]"]
    deployed = EnergyGuard(model.net)
    deployed.load_state_dict(load_file(tmp_path / "guard.safetensors"), strict=False)
    for name in ("most_length", "most_density", "profiled"):
        expected = pytest.approx(float(getattr(own, name)), rel=1e-5)
        for found in (getattr(callback.guard, name), getattr(deployed, name), saved[name]):
            assert float(found) == expected
    assert int(deployed.profiled) == 32
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert callback.guard(next(iter(loader(32)))[0]).shape == (16, 10)


def test_a_guard_goes_on_from_a_checkpoint(tmp_path):
    fit([EnergyGuardProfile(), ModelCheckpoint(tmp_path, filename="a")], epochs=1, enable_checkpointing=True)
    callback = EnergyGuardProfile()
    fit([callback], epochs=1, ckpt_path=tmp_path / "a.ckpt")  # nothing is left to do
    assert int(callback.guard.profiled) == 32


class Broken(ImageClassifier):
    def validation_step(self, batch, batch_idx):
        raise RuntimeError("the meter is off")


def test_an_interrupted_validation_leaves_no_hooks():
    model = Broken(SmallCNN(width=4), schedule="constant")
    with pytest.raises(RuntimeError, match="the meter is off"):
        fit([EnergyGuardProfile()], model, num_sanity_val_steps=0)
    assert not any(module._forward_pre_hooks for module in model.modules())


class Manual(ImageClassifier):
    def __init__(self):
        super().__init__(SmallCNN(width=4))
        self.automatic_optimization = False


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SpongeTraining(weight=0), ValueError, "weight=0"),
        (lambda: SpongeTraining(attack="fgsm"), ValueError, "'fgsm'"),
        (lambda: SpongeTraining(low=1.0, high=0.0), ValueError, "low=1.0"),
        (lambda: EnergyGuardProfile(quantile=0), ValueError, "quantile is 0"),
        (lambda: EnergyGuardProfile(policy="ban"), ValueError, "policy is 'ban'"),
        (lambda: EnergyGuardProfile(path="guard.pt"), ValueError, "ends in .safetensors"),
        (lambda: fit([EnergyGuardProfile()], limit_val_batches=0), MisconfigurationException, "validation data"),
        (lambda: fit([SpongeEvaluation()], limit_val_batches=0), MisconfigurationException, "validation data"),
        (lambda: SpongeEvaluation(0), ValueError, "every_n_epochs=0"),
        (lambda: SpongeEvaluation(attacks=("magic",)), ValueError, "'magic'"),
        (lambda: SpongeEvaluation(accelerator="abacus"), ValueError, "abacus"),
        (lambda: SpongeEvaluation(eps=-1.0), ValueError, "eps=-1.0"),
        (lambda: fit([SpongeTraining()], Manual()), MisconfigurationException, "automatic_optimization"),
    ],
)
def test_what_cannot_be_is_refused(call, error, words):
    with pytest.raises(error, match=words):
        call()
