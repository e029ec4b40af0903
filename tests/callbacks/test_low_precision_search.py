"""LowPrecisionSearch in real fits."""

import copy
import warnings

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_effnn.callbacks import HardwareEnergyMonitor, LowPrecisionSearch
from lightning_effnn.modules import ImageClassifier, SmallCNN
from lightning_effnn.quantization import QuantizationPlan, bake_, strip_
from lightning_effnn.search.bits import BitSearch

pytestmark = pytest.mark.trains


def loader(n=96, batch_size=16):
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.rand(n, 1, 8, 8, generator=generator), torch.arange(n) % 10), batch_size)


def classifier(**kw):
    L.seed_everything(0, verbose=False)
    return ImageClassifier(SmallCNN(), **({"schedule": "constant"} | kw))


def fit(callbacks, model=None, epochs=4, ckpt_path=None, val=True, **kw):
    model = model or classifier()
    L.seed_everything(0, verbose=False)
    defaults = {"logger": False, "enable_checkpointing": False}
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", enable_progress_bar=False,
        enable_model_summary=False, **(defaults | kw),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, loader(), loader(32) if val else None, ckpt_path=ckpt_path)
    return trainer, model


def searching(**kw):
    return LowPrecisionSearch(**({"weights": (2, 4, 8), "cost": "bits", "warmup": 0.25, "freeze": 0.75} | kw))


def test_bits_are_chosen_and_written_and_the_model_runs_with_them(tmp_path):
    callback = searching(export=tmp_path / "bits.yaml")
    _, model = fit([callback])
    plan = QuantizationPlan.load(tmp_path / "bits.yaml")
    assert plan == callback.plan
    plan.check(model)
    assert set(plan.weights) == {n for n, p in model.named_parameters() if p.dim() > 1}
    assert set(plan.weights.values()) <= {2, 4, 8}
    assert set(plan.activations.values()) <= {4, 8}
    images = torch.rand(4, 1, 8, 8)
    quantised = model.eval()(images)
    assert not torch.equal(strip_(model)(images), quantised)


def test_every_eighth_step_of_the_search_compares_draws(monkeypatch):
    ended, compared, compare = [], [], BitSearch.compare

    class Counts(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            ended.append(trainer.global_step)

    def noted(self, evaluate):
        compared.append(len(ended))
        return compare(self, evaluate)

    monkeypatch.setattr(BitSearch, "compare", noted)
    fit([searching(warmup=0.25, freeze=1.0), Counts()], epochs=8)  # 6 steps each, of which the search has 12 to 47
    assert compared == [16, 24, 32, 40]


def test_baked_weights_have_as_many_levels_as_were_chosen():
    callback = searching()
    _, model = fit([callback])
    bake_(model)
    for name, bits in callback.plan.weights.items():
        assert len(model.get_parameter(name).unique()) <= 2**bits


def test_a_large_weight_of_the_cost_ends_at_the_fewest_bits():
    callback = searching(cost_weight=1e3)
    fit([callback])
    assert set(callback.plan.weights.values()) == {2}
    assert set(callback.plan.activations.values()) == {4}


def test_keys_are_logged():
    callback = searching(cost="energy", accelerator="tpu_like")
    trainer, _ = fit([callback])
    found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("search/")}
    assert set(found) == {f"search/{k}" for k in ("bits_w", "bits_a", "cost", "entropy")}
    assert 2 <= found["search/bits_w"] <= 8
    assert 4 <= found["search/bits_a"] <= 8
    assert 0 < found["search/cost"] < 1
    assert len(callback.history) == 3  # epochs of the search and after


def test_nothing_is_added_to_the_model_or_its_optimizer():
    names = list(classifier().state_dict())

    class Looks(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            assert list(pl_module.state_dict()) == names
            owned = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
            assert owned == {id(p) for p in pl_module.parameters()}

    _, model = fit([searching(), Looks()])
    assert list(strip_(model).state_dict()) == names


def test_until_the_search_begins_the_fit_is_what_it_was():
    class Keeps(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                self.state = {n: t.clone() for n, t in pl_module.state_dict().items()}

    plain, searched = Keeps(), Keeps()
    fit([plain])
    fit([searching(warmup=0.5), searched])
    assert all(torch.equal(plain.state[name], tensor) for name, tensor in searched.state.items())


class Dropped(ImageClassifier):
    """Counts what its training steps see, and draws random numbers in them."""

    def __init__(self):
        super().__init__(SmallCNN(), schedule="constant")
        self.seen = MeanMetric()
        self.draws = []

    def training_step(self, batch, batch_idx):
        if self.training:
            self.draws.append(float(torch.rand(())))
        self.seen(batch[0].mean())
        self.log("seen", self.seen, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)


def test_held_out_batches_leave_no_trace_in_logs_metrics_and_random_numbers():
    L.seed_everything(0, verbose=False)
    plain, searched = Dropped(), Dropped()
    before, _ = fit([], plain)
    after, _ = fit([searching(warmup=0.0)], searched)
    assert plain.draws == searched.draws
    assert float(before.callback_metrics["seen"]) == float(after.callback_metrics["seen"])


class Remembers(ImageClassifier):
    """Keeps what training steps may keep: weights that follow, a queue, counts, and what it has seen."""

    def __init__(self):
        super().__init__(SmallCNN(), schedule="constant")
        self.follower = copy.deepcopy(self.net).requires_grad_(False)
        self.assigned = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(4, 8, 8))
        self.register_buffer("replaced", torch.zeros(()))
        self.count, self.seen, self.sums, self.table = 0, [], torch.zeros(2), {"steps": 0}

    def training_step(self, batch, batch_idx):
        weight = self.net.classifier.weight
        with torch.no_grad():
            self.follower.classifier.weight.lerp_(weight, 0.1)
            self.assigned.classifier.weight.data = self.assigned.classifier.weight.lerp(weight, 0.1)
        self.queue[self.count % 4] = batch[0][0, 0]
        self.replaced = self.replaced + 1
        self.count += 1
        self.sums += 1
        self.table["steps"] += 1
        self.seen.append((weight.detach().clone(), batch[0][0, 0]))
        return super().training_step(batch, batch_idx)


class OptimisesAll(Remembers):
    """Gives the optimiser what is frozen too."""

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-3)


@pytest.mark.parametrize("kind", [Remembers, OptimisesAll], ids=lambda kind: kind.__name__)
def test_what_training_steps_keep_is_of_training_batches_alone(kind):
    L.seed_everything(0, verbose=False)
    model = kind()
    follower = model.follower.classifier.weight.clone()
    fit([searching(warmup=0.0)], model)
    steps = 4 * 6
    assert (model.count, len(model.seen), model.table["steps"], float(model.replaced)) == (steps,) * 4
    assert model.sums.tolist() == [steps, steps]
    assert torch.equal(model.queue, torch.stack([image for _, image in model.seen[-4:]]))
    for weight, _ in model.seen:
        follower.lerp_(weight, 0.1)
    assert torch.equal(model.follower.classifier.weight, follower)
    assert torch.equal(model.assigned.classifier.weight, follower)


@pytest.mark.parametrize("stopped_after", [1, 2, 3], ids=["before", "searching", "after"])
def test_a_resumed_fit_ends_bit_identical(tmp_path, stopped_after):
    settings = {"cost": "energy", "warmup": 0.3, "freeze": 0.7}
    callback = searching(**settings)
    _, whole = fit([callback])
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    fit([searching(**settings), checkpoint], enable_checkpointing=True)
    again = searching(**settings)
    _, resumed = fit([again], ckpt_path=tmp_path / f"epoch={stopped_after - 1}.ckpt")
    assert again.plan == callback.plan
    assert again.history == callback.history
    for (name, mine), theirs in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(whole.eval()(images), resumed.eval()(images))


def test_a_checkpoint_is_tested_with_the_bits_that_were_chosen(tmp_path):
    callback = searching()
    trainer, model = fit([callback, ModelCheckpoint(tmp_path, save_last=True)], enable_checkpointing=True)
    (expected,) = trainer.test(model, loader(32), verbose=False)
    fresh = L.Trainer(callbacks=[searching()], accelerator="cpu", logger=False, enable_progress_bar=False)
    (found,) = fresh.test(classifier(), loader(32), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    assert found == expected


@pytest.mark.parametrize(
    ("part", "words"), [("errors", "errors is the list .*: a mapping is needed"), ("known", "AttributeError")]
)
def test_a_changed_checkpoint_is_refused_with_the_name_of_its_callback(part, words, tmp_path):
    fit([searching(), ModelCheckpoint(tmp_path, save_last=True)], epochs=2, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    state = checkpoint["callbacks"]["LowPrecisionSearch[search]"]
    (state["search"] if part == "errors" else state)[part] = [0.5]
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(ValueError, match=rf"state of LowPrecisionSearch\[search\] can't be taken: .*{words}"):
        fit([searching()], ckpt_path=tmp_path / "changed.ckpt")


def test_validation_sees_what_is_ahead():
    class Looks(L.Callback):
        runs = 0

        def on_validation_batch_start(self, trainer, pl_module, *_):
            if callback.search is not None and callback.search.choices:
                self.runs += 1
                chosen = callback.search.controller.chosen()
                assert {n: c.bits[c.active] for n, c in callback.search.choices.items()} == chosen

    callback, looks = searching(freeze=1.0), Looks()
    fit([callback, looks])
    assert looks.runs
    assert callback.plan is not None  # settled at the end


class Breaks(ImageClassifier):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if self.training or self.current_epoch < 2 else loss * float("nan")


def test_a_loss_that_is_not_finite_ends_the_choosing_but_not_the_training():
    L.seed_everything(0, verbose=False)
    callback, model = searching(), Breaks(SmallCNN(), schedule="constant")
    with pytest.warns(UserWarning, match="not finite in epoch 2"):
        L.Trainer(
            max_epochs=4, callbacks=[callback], accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_checkpointing=False, enable_model_summary=False,
        ).fit(model, loader(), loader(32))  # fmt: skip
    assert callback.plan is not None
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert callback.history[1]["probability"] == callback.history[2]["probability"]


@pytest.mark.parametrize("settings", [{"val": False}, {"limit_val_batches": 0}], ids=["no loader", "no batches"])
def test_without_validation_data_training_batches_decide(settings):
    callback = searching(cost_weight=1e3)
    fit([callback], **settings)
    assert callback.search.sensitivity.count > 0
    assert set(callback.plan.weights.values()) == {2}


class Mapped(ImageClassifier):
    def training_step(self, batch):
        return {"loss": super().training_step(batch, 0), "more": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"precision": "bf16-mixed"},
        {"model": lambda: Mapped(SmallCNN(), schedule="constant")},
        {"callbacks": [HardwareEnergyMonitor("eyeriss_like", stage="train")]},
        {"fast_dev_run": True},
        {"max_steps": 13},
    ],
    ids=["accumulate", "clip", "bf16", "dict", "monitor", "fast_dev_run", "max_steps"],
)
def test_it_works_with(settings):
    settings = dict(settings)
    model = settings.pop("model", classifier)()
    callback = searching(warmup=0.0)
    _, model = fit([*settings.pop("callbacks", []), callback], model, **settings)
    assert callback.plan is not None
    assert all(q.bits in (2, 4, 8) for q in callback.search.attachment.weights.values())


class TwoViews(L.LightningModule):
    """Foretells of one view of a sample what a slower copy says of the other; each goes through both networks."""

    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
        self.predictor = nn.Linear(4, 4)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def training_step(self, views, batch_idx):
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.data = slow.data * 0.99 + fast.data * 0.01
        return self.difference(*views) + self.difference(*views[::-1])

    def difference(self, view, other):
        with torch.no_grad():
            target = self.teacher(other)
        return -nn.functional.cosine_similarity(self.predictor(self.student(view)), target).mean()

    def train_dataloader(self):
        return DataLoader([(view, view.flip(-1)) for view in torch.rand(32, 1, 8, 8)], 16)

    def configure_optimizers(self):
        return torch.optim.SGD([*self.student.parameters(), *self.predictor.parameters()], 0.01)


@pytest.mark.parametrize("cost", ["energy", "bops"])
def test_networks_that_see_two_views_in_a_step_are_priced_for_both(cost):
    L.seed_everything(0, verbose=False)
    callback = searching(weights=(4, 8), cost=cost, warmup=0.0)
    trainer = L.Trainer(
        max_epochs=2, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(TwoViews())
    assert callback.plan is not None
    if cost == "bops":
        network, predictor = 8 * 9 * 6**2 + 288 * 4, 4 * 4
        assert callback.search.cost.references[""] == 32 * 32 * (4 * network + 2 * predictor)


def test_the_monitor_counts_the_training_step_alone_and_sees_the_bits():
    plain, monitor = (HardwareEnergyMonitor("eyeriss_like", stage="train") for _ in range(2))
    fit([plain])
    fit([monitor, searching(warmup=0.0)])
    assert monitor.report.macs == plain.report.macs
    assert {row["w_format"] for row in monitor.report.rows() if row["macs"]} <= {"int2", "int4", "int8"}
    assert monitor.report.energy_uJ < 0.5 * plain.report.energy_uJ


def test_learned_scales_move_after_the_bits_are_chosen():
    class Keeps(L.Callback):
        def on_train_batch_end(self, *_):
            if callback.plan is not None and not hasattr(self, "scales"):
                self.scales = [float(s) for s in callback.search.attachment.quantizers.parameters()]

    callback, keeps = searching(warmup=0.0, freeze=0.5), Keeps()
    fit([callback, keeps])
    now = [float(s) for s in callback.search.attachment.quantizers.parameters()]
    assert all(scale > 0 for scale in now)
    assert now != keeps.scales


class Manual(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.layer = nn.Linear(64, 10)

    def training_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def test_fits_that_do_not_go_together_are_refused():
    with pytest.raises(MisconfigurationException, match="automatic_optimization"):
        fit([searching()], Manual())
    with pytest.raises(MisconfigurationException, match="max_epochs"):
        fit([searching()], epochs=-1)
    with pytest.raises(MisconfigurationException, match="does not fit into max_epochs=4"):
        fit([searching(warmup=2, freeze=9)])
    with pytest.raises(ValueError, match="no weight to prune or quantise"):
        fit([searching(exclude=["*"])])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weights": (8,), "activations": (8,)}, "nothing to choose"),
        ({"weights": (3, 99)}, "got 99"),
        ({"cost": "latency"}, "'energy', 'bits', 'bops'"),
        ({"cost": "energy", "accelerator": "tpu_lik"}, "tpu_lik"),
        ({"cost": "energy", "accelerator": "shumailov2021"}, "whole modules"),
        ({"cost_weight": -1.0}, "cost_weight=-1.0"),
        ({"warmup": 0.9, "freeze": 0.1}, "the end lies before"),
        ({"warmup": 1.5}, "1.5 is neither a fraction"),
    ],
)
def test_a_wrong_argument_is_refused_at_construction(arguments, words):
    with pytest.raises(ValueError, match=words):
        LowPrecisionSearch(**arguments)


def test_a_fit_that_ends_before_the_search_says_so():
    with pytest.warns(UserWarning, match="before the search began"):
        L.Trainer(
            max_epochs=4, max_steps=1, callbacks=[searching(warmup=0.9, freeze=1.0)], accelerator="cpu", logger=False,
            enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        ).fit(classifier(), loader(), loader(32))  # fmt: skip


def test_the_figure_of_the_choices_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    fit([searching()], logger=logger)
    (picture,) = tmp_path.rglob("search_choices.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
