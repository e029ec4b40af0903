"""HardwareEnergyMonitor in real fits."""

import csv
import json
import time
import warnings

import lightning as L
import pytest
import pytorch_lightning as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from wandb_file import records

from lightning_effnn.callbacks import HardwareEnergyMonitor
from lightning_effnn.modules import ImageClassifier, SmallCNN

KEYS = {
    f"hw/{name}"
    for name in (
        "energy_uJ", "energy_dense_uJ", "latency_us", "macs", "effectual_macs", "dram_kB", "weights_kB", "act_density",
        "coverage",
    )
}  # fmt: skip


def loader(n=64, batch_size=16):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(n) % 10), batch_size=batch_size)


def fit(callbacks, model=None, epochs=2, val=True, trainer_class=L.Trainer, ckpt_path=None, **kw):
    L.seed_everything(0, verbose=False)
    model = model or ImageClassifier(SmallCNN(), schedule="constant")
    defaults = {"logger": False, "enable_checkpointing": False}
    trainer = trainer_class(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, **(defaults | kw),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, loader(), loader(32) if val else None, ckpt_path=ckpt_path)
    return trainer, model


@pytest.mark.parametrize("val", [True, False])
def test_every_key_is_logged_once_an_epoch(tmp_path, val):
    logger = CSVLogger(tmp_path)
    fit([HardwareEnergyMonitor()], epochs=3, val=val, logger=logger)
    with open(f"{logger.log_dir}/metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for key in KEYS:
        values = [row[key] for row in rows if row.get(key)]
        assert len(values) == 3, key


def test_figures_are_for_one_inference_whatever_the_batch(tmp_path):
    monitor = HardwareEnergyMonitor("tpu_like")
    trainer, model = fit([monitor])
    conv = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert 0 < monitor.report.macs < conv * 64
    many = HardwareEnergyMonitor("tpu_like", batch_size=8)
    fit([many])
    assert many.report.macs == 8 * monitor.report.macs
    assert trainer.callback_metrics["hw/macs"] == monitor.report.macs


@pytest.mark.parametrize("stage", ["train", "validate"])
def test_training_with_the_callback_is_bit_identical(stage):
    class WithDropout(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(SmallCNN(num_classes=32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, 10))

        def forward(self, x):
            return self.body(x)

    L.seed_everything(1, verbose=False)
    plain = ImageClassifier(WithDropout(), schedule="constant")
    start = {k: v.clone() for k, v in plain.state_dict().items()}
    fit([], plain)
    watched = ImageClassifier(WithDropout(), schedule="constant")
    watched.load_state_dict(start)
    fit([HardwareEnergyMonitor(stage=stage)], watched)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[key]), key


def test_checkpoints_and_early_stopping_can_monitor_its_keys(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, monitor="hw/energy_uJ", mode="min", filename="{epoch}-{hw/energy_uJ:.1f}")
    stopping = EarlyStopping("hw/macs", patience=1)  # never falls
    trainer, _ = fit([HardwareEnergyMonitor(), checkpoint, stopping], epochs=6, enable_checkpointing=True)
    assert trainer.current_epoch == 2
    assert checkpoint.best_model_path
    assert checkpoint.best_model_score > 0


class Manual(L.LightningModule):
    """Manual optimisation, two optimisers, two backward passes a step."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.a, self.b = nn.Linear(64, 16), nn.Linear(16, 10)

    def training_step(self, batch, batch_idx):
        x, y = batch
        first, second = self.optimizers()
        for optimizer in (first, second):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self.b(self.a(x.flatten(1)).relu()), y))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(m.parameters(), 0.01) for m in (self.a, self.b)]


def test_manual_optimisation_is_traced_up_to_the_first_backward():
    monitor = HardwareEnergyMonitor("tpu_like")
    fit([monitor], Manual(), val=False)
    assert monitor.report.macs == 64 * 16 + 16 * 10
    assert {row["name"] for row in monitor.report.rows() if row["macs"]} == {"a", "b"}


class PlModule(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = SmallCNN()

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_it_works_under_pytorch_lightning():
    monitor = HardwareEnergyMonitor()
    trainer, _ = fit([monitor], PlModule(), val=False, trainer_class=pl.Trainer)
    assert trainer.callback_metrics["hw/energy_uJ"] == pytest.approx(monitor.report.energy_uJ, rel=1e-5)


class Breaks(L.LightningModule):
    broken = True

    def __init__(self):
        super().__init__()
        self.net = SmallCNN()

    def training_step(self, batch, batch_idx):
        scores = self.net(batch[0])
        if self.broken:
            raise RuntimeError("my own words")
        return nn.functional.cross_entropy(scores, batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_an_exception_in_the_traced_batch_comes_out_and_leaves_nothing_open():
    from torch.nn.modules import module as hooks
    from torch.utils._python_dispatch import _get_current_dispatch_mode

    model, monitor = Breaks(), HardwareEnergyMonitor(stage="train")
    before = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    with pytest.raises(RuntimeError, match="my own words"):
        fit([monitor], model, val=False)
    assert _get_current_dispatch_mode() is None
    assert (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)) == before
    model.broken = False
    fit([monitor], model, val=False)
    assert monitor.report.macs > 0


def test_wandb_offline_holds_keys_table_and_figure(tmp_path):
    pytest.importorskip("wandb")
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="effnn")
    fit([HardwareEnergyMonitor(table_every_n_epochs=1)], epochs=2, logger=logger)
    import wandb

    wandb.finish()
    (run,) = tmp_path.rglob("run-*.wandb")
    for _ in range(120):  # its own process writes the file, and may still be at it where others use the machine
        rows = list(history(run))
        if sum("hw/energy_uJ" in row for row in rows) == 2:
            break
        time.sleep(0.5)
    for key in KEYS:
        assert sum(key in row for row in rows) == 2, key
    assert any("hw/layers" in key for row in rows for key in row)
    assert any("hw/energy" in key and "uJ" not in key for row in rows for key in row)


def history(path):
    """Rows that W&B wrote."""
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            yield {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}


def test_tensorboard_and_a_folder_get_table_and_figure(tmp_path):
    fit([HardwareEnergyMonitor(folder=str(tmp_path / "figures"))], logger=TensorBoardLogger(tmp_path))
    assert (tmp_path / "figures" / "hw_energy.png").stat().st_size > 1000
    with (tmp_path / "figures" / "hw_layers.csv").open(newline="") as file:
        assert {"name", "energy_pJ", "macs"} <= set(next(csv.DictReader(file)))
    assert not list((tmp_path / "figures").glob(".*"))


def test_the_summary_compares_the_first_epoch_with_the_last_also_after_a_resume(tmp_path):
    first = HardwareEnergyMonitor()
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit([first, checkpoint], epochs=1, enable_checkpointing=True)
    resumed = HardwareEnergyMonitor()
    fit([resumed, ModelCheckpoint(tmp_path)], epochs=3, enable_checkpointing=True, ckpt_path=checkpoint.last_model_path)
    assert resumed.first == first.first
    assert resumed.summary().row_count == len(KEYS)


def test_two_monitors_keep_apart_by_prefix():
    a, b = HardwareEnergyMonitor("tpu_like"), HardwareEnergyMonitor("eyeriss_like", prefix="eyeriss")
    assert a.state_key != b.state_key
    trainer, _ = fit([a, b])
    assert trainer.callback_metrics["hw/energy_uJ"] != trainer.callback_metrics["eyeriss/energy_uJ"]


def test_a_chip_without_time_logs_no_latency():
    trainer, _ = fit([HardwareEnergyMonitor("shumailov2021")])
    assert "hw/latency_us" not in trainer.callback_metrics
    assert trainer.callback_metrics["hw/energy_uJ"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"accelerator": "eyeris"}, "Did you mean 'eyeriss_like'"),
        ({"stage": "test"}, "'auto', 'train', 'validate'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"table_every_n_epochs": -1}, "table_every_n_epochs=-1"),
        ({"depth": 0}, "depth=0"),
    ],
)
def test_a_wrong_argument_is_refused_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        HardwareEnergyMonitor(**arguments)


def test_fast_dev_run_and_bf16_work():
    fit([HardwareEnergyMonitor()], fast_dev_run=True)
    monitor = HardwareEnergyMonitor("tpu_like")
    fit([monitor], precision="bf16-mixed")
    assert {row["w_format"] for row in monitor.report.rows() if row["macs"]} == {"bf16"}
