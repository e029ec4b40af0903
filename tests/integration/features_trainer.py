"""Features of the matrix: what a Trainer does around the steps, with loggers, checkpoints and averages."""

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import callback_cases as cases
import lightning as L
import torch
import yaml
from callback_cases import (
    BATCHES,
    EPOCHS,
    equal_states,
    equal_values,
    fit,
    loader,
    network,
    same_as_plain,
)
from features import Features
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from lightning_effnn.quantization import strip_

FEATURES = Features()
feature = FEATURES.put


@feature("gradient accumulation")
def _(case, folder):
    """as few optimiser steps as asked for"""
    run = fit(case, folder, accumulate_grad_batches=4)
    assert run.trainer.global_step == EPOCHS * 2
    same_as_plain(case, run, folder, accumulate_grad_batches=4)


@feature("gradient clipping")
def _(case, folder):
    """what the optimiser sees is clipped, a term of the callback's included"""

    class Norms(L.Callback):
        def __init__(self):
            self.seen = []

        def on_fit_start(self, trainer, pl_module):
            def after(optimizer, *_):
                grads = [p.grad.flatten() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
                self.seen.append(float(torch.cat(grads).norm()))

            trainer.optimizers[0].register_step_post_hook(after)

    norms = Norms()
    run = fit(case, folder, others=[norms], gradient_clip_val=0.05)
    assert len(norms.seen) == EPOCHS * BATCHES
    assert max(norms.seen) <= 0.05 * 1.001
    same_as_plain(case, run, folder, gradient_clip_val=0.05)


@feature("bf16-mixed")
def _(case, folder):
    """weights stay float32, and what is measured or written is theirs"""
    run = fit(case, folder, precision="bf16-mixed")
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    same_as_plain(case, run, folder, precision="bf16-mixed")


@feature("torch.compile")
def _(case, folder):
    """a compiled model ends as the eager one does, bit for bit"""
    torch._dynamo.reset()
    run = fit(case, folder, model=torch.compile(network(), backend="eager"))
    eager = fit(case, folder)
    assert equal_states(run.model, eager.model)


@feature("WeightAveraging")
def _(case, folder):
    """the average ends as what the callback promises"""
    run = fit(case, folder, others=[WeightAveraging()])
    same_as_plain(case, run, folder, others=[WeightAveraging()])


@feature("EMAWeightAveraging")
def _(case, folder):
    """the average ends as what the callback promises"""
    run = fit(case, folder, others=[EMAWeightAveraging(decay=0.5)])
    same_as_plain(case, run, folder, others=[EMAWeightAveraging(decay=0.5)])


@feature("StochasticWeightAveraging")
def _(case, folder):
    """zeros, levels and bits hold after the last averaging"""

    def averaging():
        return [StochasticWeightAveraging(1e-2, swa_epoch_start=0.5)]

    run = fit(case, folder, others=averaging())
    same_as_plain(case, run, folder, others=averaging())


@feature("ModelCheckpoint")
def _(case, folder):
    """save_last and save_top_k; the best checkpoint, loaded elsewhere, is the network that was validated"""
    checkpoint = ModelCheckpoint(folder, monitor="val_loss", save_top_k=2, save_last=True, filename="{epoch}")
    fit(case, folder, others=[checkpoint], enable_checkpointing=True)
    assert len(checkpoint.best_k_models) == 2
    assert Path(checkpoint.last_model_path).exists()
    again = cases.trainer([case.make(folder)])
    (found,) = again.validate(network(), loader(2), ckpt_path=checkpoint.best_model_path, verbose=False)
    assert found["val_loss"] == float(checkpoint.best_model_score)


@feature('ckpt_path="best"')
def _(case, folder):
    """tested with the best checkpoint, in the same Trainer, the network is the one that was validated"""
    checkpoint = ModelCheckpoint(folder, monitor="val_loss", filename="{epoch}")
    run = fit(case, folder, others=[checkpoint], enable_checkpointing=True)
    (found,) = run.trainer.test(run.model, loader(2), ckpt_path="best", verbose=False)
    assert found["test_loss"] == float(checkpoint.best_model_score)


@feature("EarlyStopping")
def _(case, folder):
    """a fit that stops early keeps the promise all the same"""
    run = fit(case, folder, others=[EarlyStopping("val_loss", mode="max", patience=1, min_delta=100.0)])
    assert run.trainer.current_epoch == 2
    assert run.trainer.should_stop


@feature("max_time")
def _(case, folder):
    """a fit whose time is over keeps the promise all the same"""
    run = fit(case, folder, epochs=10_000, max_time={"seconds": 2})
    assert 0 < run.trainer.current_epoch < 10_000
    assert run.trainer.should_stop


@feature("fast_dev_run")
def _(case, folder):
    """one batch, and the whole of the callback with it"""
    run = fit(case, folder, fast_dev_run=True)
    assert run.trainer.global_step == 1


@feature("max_steps alone")
def _(case, folder):
    """a fit that counts steps, not epochs, keeps the promise"""
    run = fit(case, folder, epochs=-1, max_steps=20)
    assert run.trainer.global_step == 20
    same_as_plain(case, run, folder, epochs=-1, max_steps=20)


@feature("overfit_batches")
def _(case, folder):
    """schedules count the batches that there are"""
    run = fit(case, folder, overfit_batches=2)
    assert run.trainer.global_step == 2 * EPOCHS


@feature("limit_train_batches, limit_val_batches")
def _(case, folder):
    """schedules count the batches that there are"""
    run = fit(case, folder, limit_train_batches=3, limit_val_batches=1)
    assert run.trainer.global_step == 3 * EPOCHS
    same_as_plain(case, run, folder, limit_train_batches=3, limit_val_batches=1)


@feature("sanity check")
def _(case, folder):
    """changes nothing of the fit, bit for bit"""
    run = fit(case, folder, num_sanity_val_steps=2)
    other = fit(case, folder)
    assert equal_states(run.model, other.model)
    for key in case.keys:
        assert torch.equal(run.trainer.callback_metrics[key], other.trainer.callback_metrics[key])


@feature("validate, test, predict")
def _(case, folder):
    """see the network that the fit ended with, however often they are called; also before any fit"""
    fresh = cases.trainer([case.make(folder)])
    before = network()
    fresh.validate(before, loader(2), verbose=False)
    assert equal_states(before, network())
    run = fit(case, folder)
    state = copy.deepcopy(run.model.state_dict())
    images = next(iter(loader()))[0]
    expected = run.model.eval()(images)
    for _ in range(2):
        run.trainer.validate(run.model, loader(2), verbose=False)
        run.trainer.test(run.model, loader(2), verbose=False)
        predicted = run.trainer.predict(run.model, loader(2))
        assert torch.equal(predicted[0], expected)
    assert equal_values(state, run.model.state_dict())


@feature("inference_mode=False")
def _(case, folder):
    """ends as with inference mode, bit for bit"""
    assert equal_states(fit(case, folder, inference_mode=False).model, fit(case, folder).model)


@feature("resume")
def _(case, folder):
    """a fit resumed after any epoch ends bit-identical, its state too"""
    saving = ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    whole = fit(case, folder, others=[saving], enable_checkpointing=True)
    for epoch in range(EPOCHS - 1):
        resumed = fit(case, folder, ckpt_path=folder / f"epoch={epoch}.ckpt")
        assert equal_states(resumed.model, whole.model), epoch
        assert equal_values(resumed.callback.state_dict(), whole.callback.state_dict()), epoch


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "lightning_effnn":
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
import torch
loaded = torch.load(sys.argv[1], weights_only=True)
torch.save({"state_dict": loaded["state_dict"], "epoch": loaded["epoch"]}, sys.argv[2])
assert not any(name.startswith("lightning_effnn") for name in sys.modules)
"""


@feature("checkpoint without this library")
def _(case, folder):
    """loads where lightning_effnn can't be imported (weights_only), and training goes on without the callback"""
    saving = ModelCheckpoint(folder, save_last=True)
    run = fit(case, folder, others=[saving], enable_checkpointing=True, epochs=3)
    path, out = folder / "last.ckpt", folder / "out.pt"
    subprocess.run([sys.executable, "-c", WITHOUT, str(path), str(out)], check=True, timeout=300)
    plain = network()
    plain.load_state_dict(torch.load(out, weights_only=True)["state_dict"])
    at_end = torch.load(path, weights_only=True)["state_dict"]
    assert equal_values(dict(plain.state_dict()), dict(at_end))
    onwards = fit(None, folder, ckpt_path=path, epochs=4)
    assert onwards.trainer.global_step == 4 * BATCHES
    assert list(at_end) == list(run.model.state_dict())


@feature("deepcopy")
def _(case, folder):
    """a copy of the model taken in the fit is a module of its own, and a copy of the callback works as the callback"""

    class Copies(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.copied = copy.deepcopy(pl_module)
            images = next(iter(loader()))[0]
            mode = pl_module.training
            assert torch.equal(self.copied.eval()(images), pl_module.eval()(images))
            pl_module.train(mode)

    copies = Copies()
    run = fit(case, folder, others=[copies])
    before = copy.deepcopy(run.model.state_dict())
    copied = copies.copied
    assert "training_step" not in copied.__dict__ or copied.__dict__["training_step"].__self__ is copied
    cases.trainer([], epochs=1).fit(strip_(copied), loader())
    assert equal_values(before, run.model.state_dict())
    twin = copy.deepcopy(case.make(folder))
    model = network()
    twice = cases.trainer([twin])
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twice.fit(model, loader(), loader(2))
    assert equal_states(model, run.model)


@feature("pytorch_lightning")
def _(case, folder):
    """ends as under lightning, bit for bit"""
    run = fit(case, folder, library="pytorch_lightning")
    assert type(run.trainer).__module__.startswith("pytorch_lightning")
    assert equal_states(run.model, fit(case, folder).model)


@feature("LightningCLI")
def _(case, folder):
    """built from YAML, with the callback's arguments saved beside the run"""
    arguments = case.filled(folder) | case.in_yaml
    config = {
        "model": {
            "class_path": "lightning_effnn.modules.ImageClassifier",
            "init_args": {"net": {"class_path": "lightning_effnn.modules.SmallCNN"}},
        },
        "data": {"class_path": "lightning_effnn.data.DigitsDataModule"},
        "trainer": {
            "max_epochs": 2,
            "limit_train_batches": 4,
            "limit_val_batches": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}},
            "callbacks": [
                {
                    "class_path": f"lightning_effnn.callbacks.{case.name}",
                    "init_args": case.filled(folder) | case.in_yaml,
                },
            ],
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = LightningCLI(args=["fit", "--config", str(folder / "config.yaml")])
    assert set(case.keys) <= set(cli.trainer.callback_metrics)
    (saved,) = (folder / "lightning_logs").rglob("config.yaml")
    kept = yaml.safe_load(saved.read_text())["trainer"]["callbacks"][0]["init_args"]
    for name, value in arguments.items():
        assert kept[name] == (list(value) if isinstance(value, tuple) else value), name


def csv_keys(folder):
    (metrics,) = folder.rglob("metrics.csv")
    return set(metrics.read_text().partition("\n")[0].split(","))


@feature("CSVLogger")
def _(case, folder):
    """every key is a column, the callback's parameters are in hparams.yaml"""
    run = fit(case, folder, logger=CSVLogger(folder))
    assert set(case.keys) <= csv_keys(folder)
    (saved,) = folder.rglob("hparams.yaml")
    assert yaml.safe_load(saved.read_text())[run.callback.prefix]["callback"] == case.name


@feature("TensorBoardLogger")
def _(case, folder):
    """every key is a scalar"""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(folder)
    fit(case, folder, logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert set(case.keys) <= set(events.Tags()["scalars"])


@feature("WandbLogger, offline")
def _(case, folder):
    """every key is in the run's summary, the callback's parameters in its config"""
    import wandb

    logger = WandbLogger(save_dir=folder, offline=True, project="effnn")
    try:
        run = fit(case, folder, logger=logger)
        assert set(case.keys) <= set(logger.experiment.summary.keys())
        config = logger.experiment.config[run.callback.prefix]
        assert config["callback"] == case.name
        for name, value in case.filled(folder).items():
            assert config[name] == (list(value) if isinstance(value, tuple) else value), name
    finally:
        wandb.finish()


@feature("several loggers")
def _(case, folder):
    """each of them gets every key"""
    first, second = CSVLogger(folder / "a"), CSVLogger(folder / "b")
    fit(case, folder, logger=[first, second, TensorBoardLogger(folder / "c")])
    assert set(case.keys) <= csv_keys(folder / "a") & csv_keys(folder / "b")


@feature("no logger")
def _(case, folder):
    """figures are there for ModelCheckpoint to watch"""
    watching = ModelCheckpoint(folder, monitor=case.keys[0], save_top_k=1)
    run = fit(case, folder, others=[watching], logger=False, enable_checkpointing=True)
    assert float(watching.best_model_score) >= 0
    assert not list(folder.rglob("*.csv"))
    assert run.trainer.loggers == []
