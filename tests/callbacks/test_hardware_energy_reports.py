"""What HardwareEnergyMonitor assumes, says and prints, in fits and outside of them."""

import csv
import warnings

import lightning as L
import pytest
import pytorch_lightning as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_effnn import hardware
from lightning_effnn.callbacks import HardwareEnergyMonitor

MACS = 8 * 16 + 16 * 3


@torch.library.custom_op("effnn_monitor_test::twist", mutates_args=())
def twist(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x @ weight


twist.register_autograd(
    lambda ctx, g: (g @ ctx.saved[1].T, ctx.saved[0].T @ g),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "saved", inputs),
)


def module_of(base):
    class Net(base):
        """Two layers on the rows of a batch [..., 8]; every step takes the same way."""

        def __init__(self, *middle):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), *middle, nn.ReLU(), nn.Linear(16, 3))

        def step(self, batch, batch_idx=0, dataloader_idx=0):
            return self.net(batch[0].reshape(-1, 8)).square().mean()

        training_step = validation_step = test_step = predict_step = step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)

    return Net


Net = module_of(L.LightningModule)


class Twisted(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(16))

    def forward(self, x):
        return twist(x, self.weight)


class Recurrent(Net):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 8)

    def training_step(self, batch, batch_idx):
        return self.net(self.rnn(batch[0])[0].reshape(-1, 8)).square().mean()


def loader(n=64, batch_size=16, shape=(8,), **kw):
    return DataLoader(TensorDataset(torch.rand(n, *shape)), batch_size=batch_size, **kw)


def trainer_with(*callbacks, trainer_class=L.Trainer, **kw):
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "max_epochs": 2}
    return trainer_class(callbacks=list(callbacks), accelerator="cpu", enable_model_summary=False, **(defaults | kw))


def heard(run, *arguments, **kw):
    """Run, and return what the monitor warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(*arguments, **kw)
    return [str(w.message) for w in caught if "HardwareEnergyMonitor" in str(w.message)]


class TestAssumptions:
    def test_the_axis_and_the_inferences_of_a_batch_can_be_said(self):
        steps_first = loader(
            shape=(8,), collate_fn=lambda items: (torch.stack([i[0] for i in items]).expand(5, -1, -1),)
        )
        monitor = HardwareEnergyMonitor(batch_dim=1, verbose=False)
        assert heard(trainer_with(monitor).fit, Net(), steps_first) == []
        assert monitor.report.macs == 5 * MACS
        monitor = HardwareEnergyMonitor(inferences=32, verbose=False)  # each item is a pair of inferences
        assert heard(trainer_with(monitor).fit, Net(), loader(shape=(2, 8))) == []
        assert monitor.report.macs == MACS

    def test_a_reading_that_may_be_wrong_is_said_once_a_fit(self):
        monitor = HardwareEnergyMonitor(verbose=False)
        trainer = trainer_with(monitor, max_epochs=3)
        (said,) = heard(trainer.fit, Recurrent(), loader(shape=(5, 8)))
        assert "axis 1 of the input" in said
        assert "batch_dim" in said
        trainer.fit_loop.max_epochs = 4
        assert len(heard(trainer.fit, trainer.lightning_module, loader(shape=(5, 8)))) == 1

    def test_a_smaller_first_batch_holds_as_many_fewer_inferences(self):
        monitor = HardwareEnergyMonitor(inferences=32, verbose=False)
        (said,) = heard(trainer_with(monitor).fit, Net(), loader(n=5, shape=(2, 8)))
        assert "5 items" in said
        assert "10 inferences" in said
        assert monitor.report.macs == MACS

    def test_a_last_batch_that_is_smaller_changes_nothing(self):
        monitor = HardwareEnergyMonitor(inferences=32, verbose=False)
        assert heard(trainer_with(monitor).fit, Net(), loader(n=20, shape=(2, 8))) == []
        assert monitor.report.macs == MACS

    def test_a_fraction_of_an_inference_is_refused_and_the_fit_goes_on(self):
        monitor = HardwareEnergyMonitor(inferences=8, verbose=False)
        trainer = trainer_with(monitor)
        (said,) = heard(trainer.fit, Net(), loader(n=5, shape=(2, 8)))
        assert "2.50 inferences" in said
        assert "inferences=8" in said
        assert trainer.current_epoch == 2
        assert monitor.report is None

    def test_another_loaders_batches_hold_their_share(self):
        monitor = HardwareEnergyMonitor(inferences=32, verbose=False)
        trainer_with(monitor).fit(Net(), loader(shape=(2, 8)))
        (said,) = heard(trainer_with(monitor).test, Net(), loader(batch_size=4, shape=(2, 8)), verbose=False)
        assert "8 inferences" in said
        assert monitor.report.macs == MACS

    def test_batches_of_a_stream_that_differ_from_the_first_are_named(self):
        class Stream(IterableDataset):
            rows = iter([16, 16, 12, 12])

            def __iter__(self):
                yield torch.rand(next(self.rows), 8)
                yield torch.rand(16, 8)

        monitor = HardwareEnergyMonitor(inferences=16, verbose=False)
        said = heard(trainer_with(monitor, max_epochs=3).fit, Net(), DataLoader(Stream(), batch_size=None))
        assert not any("can't be traced" in text for text in said)
        assert sum("extent 12" in text and "inferences=16" in text for text in said) == 1

    def test_an_axis_that_no_tensor_has_is_named_and_the_fit_goes_on(self):
        monitor = HardwareEnergyMonitor(batch_dim=4, verbose=False)
        trainer = trainer_with(monitor)
        (said,) = heard(trainer.fit, Net(), loader())
        assert "batch_dim=4" in said
        assert trainer.current_epoch == 2

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"inferences": 0}, "inferences=0: an integer of 1 or more"),
            ({"inferences": 2.0}, "inferences=2.0"),
            ({"batch_dim": True}, "batch_dim=True"),
            ({"batch_dim": "0"}, "batch_dim='0'"),
            ({"batch_size": 1.5}, "batch_size=1.5"),
        ],
    )
    def test_a_wrong_argument_is_refused_at_construction(self, arguments, words):
        with pytest.raises(ValueError, match=words):
            HardwareEnergyMonitor(**arguments)


def test_an_unknown_operation_is_named_with_its_module_its_reason_and_the_remedy():
    monitor = HardwareEnergyMonitor("tpu_like", verbose=False)
    (said,) = heard(trainer_with(monitor).fit, Net(Twisted()), loader())
    assert "effnn_monitor_test.twist.default in net.1 (no rule" in said
    assert "hardware.register_cost('effnn_monitor_test::twist', rule)" in said
    assert "% of the work is known" in said


@pytest.fixture(params=[(L.LightningModule, L.Trainer), (pl.LightningModule, pl.Trainer)], ids=["lightning", "pl"])
def bases(request):
    return module_of(request.param[0])(), request.param[1]


class TestOutsideAFit:
    @pytest.mark.parametrize("stage", ["auto", "train"])
    @pytest.mark.parametrize("run", ["validate", "test"])
    def test_the_figures_are_logged_and_the_table_printed(self, bases, run, stage, capsys):
        model, trainer_class = bases
        trainer = trainer_with(monitor := HardwareEnergyMonitor(stage=stage), trainer_class=trainer_class)
        (logged,) = getattr(trainer, run)(model, loader(), verbose=False)
        assert logged["hw/macs"] == MACS
        assert logged["hw/energy_uJ"] == pytest.approx(monitor.report.energy_uJ, rel=1e-5)
        printed = capsys.readouterr().out
        assert printed.count("Cost on eyeriss_like") == 1
        assert "First and last epoch" not in printed

    def test_prediction_prints_and_writes_the_table(self, bases, tmp_path, capsys):
        model, trainer_class = bases
        monitor = HardwareEnergyMonitor(folder=str(tmp_path))
        trainer_with(monitor, trainer_class=trainer_class).predict(model, loader())
        assert monitor.report.macs == MACS
        assert capsys.readouterr().out.count("Cost on eyeriss_like") == 1
        with (tmp_path / "hw_layers.csv").open(newline="") as file:
            assert sum(int(row["macs"]) for row in csv.DictReader(file)) == MACS

    def test_it_is_the_first_batch_of_the_first_loader(self):
        monitor = HardwareEnergyMonitor(verbose=False)
        trainer_with(monitor).test(Net(), [loader(), loader(shape=(7, 8))], verbose=False)
        assert monitor.report.macs == MACS

    def test_a_report_is_that_of_the_last_run(self):
        trainer = trainer_with(monitor := HardwareEnergyMonitor(verbose=False))
        trainer.fit(Net(), loader())
        first = dict(monitor.first)
        trainer.test(trainer.lightning_module, loader(shape=(3, 8)), verbose=False)
        assert monitor.report.macs == 3 * MACS
        assert monitor.first == first

    def test_the_sanity_check_is_not_traced(self):
        traced = []

        class Counting(HardwareEnergyMonitor):
            def on_sanity_check_end(self, trainer, pl_module):
                traced.append(self.report)

        trainer_with(monitor := Counting(verbose=False)).fit(Net(), loader(), loader())
        assert traced == [None]
        assert monitor.report.macs == MACS


class TestConsole:
    def test_an_epoch_is_one_line_with_its_change_against_the_first(self, capsys):
        trainer_with(HardwareEnergyMonitor(), max_epochs=3).fit(Net(), loader(), loader())
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
        assert [line.split(":")[0] for line in lines] == ["epoch 0", "epoch 1", "epoch 2"]
        assert all(" uJ (" in line and " us (" in line and "%" in line for line in lines)
        assert not any("coverage" in line for line in lines)

    def test_the_line_says_a_coverage_that_is_not_full(self, capsys):
        trainer_with(HardwareEnergyMonitor(), max_epochs=1).fit(Net(Twisted()), loader())
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
        assert "coverage" in line

    def test_epochs_without_a_trace_print_no_line(self, capsys):
        trainer_with(HardwareEnergyMonitor(), max_epochs=4, check_val_every_n_epoch=2).fit(Net(), loader(), loader())
        assert capsys.readouterr().out.count("epoch ") == 2 + 1  # and the summary's title

    def test_without_words_it_still_writes(self, tmp_path, capsys):
        monitor = HardwareEnergyMonitor(folder=str(tmp_path / "cost"), verbose=False)
        trainer_with(monitor, logger=CSVLogger(tmp_path)).fit(Net(), loader(), loader())
        assert capsys.readouterr().out == ""
        assert (tmp_path / "cost" / "hw_layers.csv").exists()

    @pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
    def test_it_leaves_the_progress_bar_whole(self, bar, capsys):
        trainer = trainer_with(HardwareEnergyMonitor(), bar(refresh_rate=1), enable_progress_bar=True)
        trainer.fit(Net(), loader(), loader())
        trainer.validate(trainer.lightning_module, loader(), verbose=False)
        lines = [line.rpartition("\r")[2] for line in capsys.readouterr().out.split("\n")]
        assert sum(line.startswith("epoch ") for line in lines) == 2
        assert sum(line.startswith("Cost on eyeriss_like") for line in lines) == 2

    def test_a_resumed_fit_compares_with_the_first_epoch_of_all(self, tmp_path, capsys):
        save = ModelCheckpoint(tmp_path, save_last=True)
        trainer_with(first := HardwareEnergyMonitor(), save, max_epochs=1, enable_checkpointing=True).fit(
            Net(), loader()
        )
        capsys.readouterr()
        dead = Net()
        monitor = HardwareEnergyMonitor()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer_with(monitor, ModelCheckpoint(tmp_path / "2"), enable_checkpointing=True).fit(
                dead, loader(), ckpt_path=save.last_model_path
            )
        assert monitor.first == first.first
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch 1")]
        change = monitor.report.energy_uJ / first.first["energy_uJ"] - 1
        assert f"({change:+.1%})" in line

    def test_figures_of_another_chip_are_not_compared_with(self):
        old, new = HardwareEnergyMonitor("tpu_like"), HardwareEnergyMonitor("eyeriss_like")
        old.first = {"energy_uJ": 1.0}
        new.load_state_dict(old.state_dict())
        assert new.first == {}

    def test_a_fit_of_another_model_begins_anew(self):
        monitor = HardwareEnergyMonitor(verbose=False)
        trainer_with(monitor).fit(Net(), loader())
        trainer_with(monitor).fit(Net(), loader(shape=(2, 8)))
        assert monitor.first["macs"] == 2 * MACS


def test_registered_costs_end_the_warning():
    hardware.register_cost(
        "effnn_monitor_test::twist", lambda x, weight, out: {"B": len(x), "C": len(weight), "K": weight.shape[1]}
    )
    try:
        monitor = HardwareEnergyMonitor("tpu_like", verbose=False)
        assert heard(trainer_with(monitor).fit, Net(Twisted()), loader()) == []
        assert monitor.report.macs == MACS + 16 * 16
    finally:
        from lightning_effnn.hardware.tracing import rules

        del rules._RULES["effnn_monitor_test::twist"]
