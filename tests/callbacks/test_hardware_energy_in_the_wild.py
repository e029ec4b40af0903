"""HardwareEnergyMonitor on models that are scripted, exported, checkpointed, diverged, broken or not alone."""

import threading
import warnings
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import RunningStage, TrainerFn, TrainerState
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn.callbacks import HardwareEnergyMonitor

BODY, HEAD = 8 * 16, 16 * 3


def body():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU())


class Net(L.LightningModule):
    """A body of any make and a plain head."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(16, 3)

    def features(self, x):
        return self.body(x)

    def step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.features(batch[0])), batch[1])

    training_step = validation_step = step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


def loader(n=64):
    generator = torch.Generator().manual_seed(1)
    return DataLoader(TensorDataset(torch.rand(n, 8, generator=generator), torch.arange(n) % 3), batch_size=16)


def trainer_with(*callbacks, **kw):
    return L.Trainer(
        accelerator="cpu", callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **({"max_epochs": 2} | kw),
    )  # fmt: skip


def fit(build, stage, val=None, **kw):
    """Fit the same network with a monitor and without; return the monitor and what it warned of."""
    ends, monitor = [], HardwareEnergyMonitor("eyeriss_like", stage=stage, verbose=False)
    for callbacks in ([], [monitor]):
        torch.manual_seed(0)
        model = build()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer_with(*callbacks, **kw).fit(model, loader(), val or loader())
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.equal(*ends)
    return monitor, [str(w.message) for w in caught if "HardwareEnergyMonitor" in str(w.message)]


def exported():
    module = torch.export.export(body(), (torch.rand(16, 8),)).module()
    module.train = lambda mode=True: module  # it refuses to change its mode, which Lightning asks of every module
    return module


class Checkpointed(Net):
    reentrant = True

    def features(self, x):
        return checkpoint(self.body, x.requires_grad_(), use_reentrant=self.reentrant)


class NotReentrant(Checkpointed):
    reentrant = False


class Silent(Net):
    def step(self, batch, batch_idx):
        with torch.no_grad():
            self.body(batch[0])
        with torch.inference_mode():
            self.body(batch[0])
        return super().step(batch, batch_idx)

    training_step = validation_step = step


MAKES = {
    "plain": (lambda: Net(body()), BODY),
    "scripted": (lambda: Net(torch.jit.script(body())), BODY),
    "traced by torch.jit": (lambda: Net(torch.jit.trace(body(), torch.rand(16, 8))), BODY),
    "exported": (lambda: Net(exported()), BODY),
    "reentrant checkpointing": (lambda: Checkpointed(body()), BODY),
    "checkpointing": (lambda: NotReentrant(body()), BODY),
    "no_grad and inference_mode": (lambda: Silent(body()), 3 * BODY),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("stage", ["train", "validate"])
@pytest.mark.parametrize("make", MAKES)
def test_the_fit_ends_the_same_and_the_products_are_exact(make, stage):
    build, macs = MAKES[make]
    monitor, said = fit(build, stage)
    assert said == []
    assert monitor.report.macs == macs + HEAD
    assert monitor.report.coverage == 1.0
    assert monitor.report.weights_kB == pytest.approx(4 * (BODY + 16 + HEAD + 3) / 1000)


@pytest.mark.parametrize("stage", ["train", "validate"])
def test_what_another_thread_serves_meanwhile_is_not_counted(stage):
    other, seen = nn.Sequential(nn.Linear(8, 500), nn.Linear(500, 8)), []

    class Serving(Net):
        def features(self, x):
            def serve():
                with torch.no_grad():
                    seen.append(other(torch.ones(4, 8)))

            thread = threading.Thread(target=serve)
            thread.start()
            thread.join()
            return super().features(x)

    monitor, said = fit(lambda: Serving(body()), stage)
    assert monitor.report.macs == BODY + HEAD
    assert said == []
    with torch.no_grad():
        assert all(torch.equal(result, other(torch.ones(4, 8))) for result in seen)


@pytest.mark.parametrize(("stage", "hook"), [("train", "training_step"), ("validate", "validation_step")])
def test_an_exception_comes_out_and_the_next_fit_is_traced(stage, hook):
    class Fails(Net):
        fails = True

        def failing(self, batch, batch_idx):
            loss = self.step(batch, batch_idx)
            if self.fails:
                raise RuntimeError("my own words")
            return loss

    setattr(Fails, hook, Fails.failing)
    model, monitor = Fails(body()), HardwareEnergyMonitor(stage=stage, verbose=False)
    with pytest.raises(RuntimeError, match="my own words"):
        trainer_with(monitor, num_sanity_val_steps=0).fit(model, loader(), loader())
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    model.fails = False
    trainer_with(monitor).fit(model, loader(), loader())
    assert monitor.report.macs == BODY + HEAD


def test_an_epoch_that_the_module_skips_leaves_no_trace_open():
    class Skips(Net):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if self.current_epoch == 0 else None

    open_between = []

    class Looks(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            open_between.append(torch.utils._python_dispatch._get_current_dispatch_mode())

        on_fit_end = on_train_epoch_start

    monitor = HardwareEnergyMonitor(stage="train", verbose=False)
    trainer_with(monitor, Looks(), max_epochs=3).fit(Skips(body()), loader())
    assert open_between == [None] * 4
    assert monitor.report.macs == BODY + HEAD


def test_a_diverged_network_does_not_look_cheap():
    class Diverges(Net):
        def on_train_epoch_end(self):
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.fill_(float("nan"))

    logged = []

    class Keeps(L.Callback):
        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                logged.append(dict(trainer.callback_metrics))

    monitor = HardwareEnergyMonitor("eyeriss_like", verbose=False)
    trainer_with(monitor, Keeps()).fit(Diverges(body()), loader(), loader())
    healthy, diverged = logged
    for key in ("hw/energy_uJ", "hw/energy_dense_uJ", "hw/effectual_macs", "hw/latency_us", "hw/dram_kB"):
        assert torch.isfinite(diverged[key])
        assert diverged[key] >= healthy[key], key


def test_a_batch_that_cannot_be_traced_is_named_and_the_fit_goes_on():
    class Empty(Net):
        def step(self, batch, batch_idx):
            return super().step(batch, batch_idx) if len(batch[0]) else None

        training_step = validation_step = step

    nothing = DataLoader(TensorDataset(torch.rand(1, 0, 8), torch.zeros(1, 0, dtype=torch.int64)), batch_size=None)
    monitor, said = fit(lambda: Empty(body()), "validate", val=nothing)
    assert monitor.report is None
    (text,) = said
    assert "the example batch is empty" in text


@pytest.mark.parametrize("chip", ["eyeriss_like", "shumailov2021"])
def test_a_process_without_figures_logs_the_keys_that_others_wait_for(chip):
    class Recorder:
        def __init__(self):
            self.logged = {}

        def log(self, key, value, **how):
            self.logged[key] = value

    whole, without = HardwareEnergyMonitor(chip, verbose=False), HardwareEnergyMonitor(chip)
    trainer = trainer_with(whole, max_epochs=1)
    trainer.fit(Net(body()), loader())

    def logged_among(processes):
        recorder = Recorder()
        training = TrainerState(fn=TrainerFn.FITTING, stage=RunningStage.TRAINING)
        one = SimpleNamespace(
            sanity_checking=False, enable_validation=False, world_size=processes, state=training
        )  # fmt: skip
        without.on_train_batch_end(one, recorder, None, None, 0)
        return recorder.logged

    assert logged_among(1) == {}
    logged = logged_among(2)
    assert set(logged) == {key for key in trainer.callback_metrics if key.startswith("hw/")}
    assert all(value != value for value in logged.values())
    assert without.first == {}


class TestPrecision:
    def reports(self):
        found = {}
        for precision in ("32-true", "bf16-mixed", "bf16-true"):
            monitor = HardwareEnergyMonitor("tpu_like", stage="train", verbose=False)
            torch.manual_seed(0)
            trainer_with(monitor, precision=precision).fit(Net(body()), loader())
            found[precision] = monitor.report
        return found

    def test_mixed_precision_multiplies_and_stores_as_half_precision_does(self):
        reports = self.reports()

        def products(precision):
            layers = [c for c in reports[precision].layers if c.operation.is_mac]
            return {
                (c.operation.name, c.operation.extents, str(c.operation.w_format), str(c.operation.i_format)): (
                    float(c.dense.energy_pJ)
                )
                for c in layers
            }

        assert products("bf16-mixed") == pytest.approx(products("bf16-true"))
        assert reports["bf16-mixed"].macs == reports["32-true"].macs
        single = sum(products("32-true").values())
        assert sum(products("bf16-true").values()) < single
        weights = {name: report.weights_kB for name, report in reports.items()}
        assert weights["bf16-mixed"] == weights["bf16-true"] == weights["32-true"] / 2

    def test_what_mixed_precision_costs_more_is_the_casts_of_activations(self):
        reports = self.reports()

        def others(precision):
            layers = [c for c in reports[precision].layers if not c.operation.is_mac]
            return {(c.operation.name, c.operation.op) for c in layers if c.operation.phase == "forward"}

        assert {op for _, op in others("bf16-mixed") - others("bf16-true")} <= {"_to_copy"}
