"""Which weights the callbacks take of real fits, what they leave, and what they say of it."""

import warnings

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor, LowPrecisionSearch
from lightning_effnn.quantization import WeightFinder, weight_sites


class Dense(nn.Module):
    """A linear layer under another name, whose weight is [in, out]."""

    def __init__(self, rows, columns):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(rows, columns) * rows**-0.5)

    def forward(self, x):
        return x @ self.matrix


class Classifier(L.LightningModule):
    def __init__(self, net, **others):
        super().__init__()
        self.net = net
        for name, module in others.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam((p for p in self.parameters() if p.requires_grad), 1e-3)


class Student(Classifier):
    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            taught = self.teacher(batch[0]).softmax(-1)
        return F.cross_entropy(self(batch[0]), taught)


def loader():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(64, 16, generator=generator), torch.arange(64) % 4), 16)


def fit(model, callbacks, epochs=4, ckpt_path=None, **kw):
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, **({"enable_checkpointing": False} | kw),
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        trainer.fit(model, loader(), ckpt_path=ckpt_path)
    return trainer


def seeded(build):
    torch.manual_seed(0)
    return build()


def unknown():
    return seeded(lambda: Classifier(nn.Sequential(Dense(16, 64), nn.ReLU(), Dense(64, 64), nn.ReLU(), Dense(64, 4))))


def names(callback):
    return [layer.site.name for layer in callback.projector.layers]


@pytest.mark.parametrize("monitor_first", [True, False])
def test_layers_of_an_unknown_class_beside_a_monitor(tmp_path, monitor_first):
    model = unknown()
    monitor = HardwareEnergyMonitor("eyeriss_like")
    callback = FocusedCompression(0.9, quantize=(0.5, 0.7), export=tmp_path / "x.effnn")
    trainer = fit(model, [monitor, callback] if monitor_first else [callback, monitor])
    assert names(callback) == ["net.0.matrix", "net.2.matrix", "net.4.matrix"]
    assert callback.report.ratio >= 12
    assert float(trainer.callback_metrics["compress/ratio"]) == pytest.approx(callback.report.ratio, rel=1e-6)
    assert callback.report.sparsity == pytest.approx(0.9, abs=0.02)
    assert {row["w_format"] for row in monitor.report.rows() if row["macs"]} <= {"focus5", "pow2_5"}


class Words(nn.Module):
    """A small GPT-2 with layers of a class that nobody knows, and a head tied to its table."""

    def __init__(self, width=64):
        super().__init__()
        self.table = nn.Embedding(40, width)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attn": Dense(width, 3 * width), "proj": Dense(width, width), "up": Dense(width, 4 * width),
                           "down": Dense(4 * width, width), "norm": nn.LayerNorm(width)})
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(width, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens)
        for block in self.blocks:
            q, k, v = block["attn"](block["norm"](x)).chunk(3, -1)
            x = x + block["proj"](F.scaled_dot_product_attention(q, k, v, is_causal=True))
            x = x + block["down"](F.gelu(block["up"](x)))
        return self.head(x)


class Language(Classifier):
    def training_step(self, batch, batch_idx):
        tokens = batch[0].argsort(-1)
        return F.cross_entropy(self(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def test_a_gpt_is_taken_whole_and_small(tmp_path):
    callback = FocusedCompression(0.9, bits=5, export=tmp_path / "x.effnn")
    trainer = fit(seeded(lambda: Language(Words())), [callback])
    selection = callback._selection
    assert selection.share_of_macs >= 0.99
    assert selection.share_of_parameters > 0.99
    assert len(names(callback)) == 9  # the tied table once
    assert callback.report.ratio >= 12
    assert float(trainer.callback_metrics["compress/ratio"]) == pytest.approx(callback.report.ratio, rel=1e-6)


def test_looking_changes_nothing_in_the_fit():
    plain, looked = unknown(), unknown()
    fit(plain, [])
    fit(looked, [FocusedCompression(sparsity=0.0, prune=None, quantize=None)])
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), looked.parameters(), strict=True))


@pytest.mark.trains
def test_a_resumed_fit_knows_what_was_seen(tmp_path):
    def compression():
        return FocusedCompression(0.8, prune=(0.0, 0.5), quantize=(0.5, 0.9))

    whole, first, second = unknown(), unknown(), unknown()
    fit(whole, [compression()], epochs=4)
    saved = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", every_n_epochs=1)
    fit(first, [compression(), saved], epochs=4, enable_checkpointing=True)
    resumed = compression()
    fit(second, [resumed], epochs=4, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert len(names(resumed)) == 3
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def mlp():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def test_a_frozen_teacher_is_left_alone_and_named():
    model = seeded(lambda: Student(mlp(), teacher=mlp().requires_grad_(False)))
    before = [p.clone() for p in model.teacher.parameters()]
    callback = FocusedCompression(0.9)
    with pytest.warns(
        UserWarning, match=r"(?s)takes 2 weights, with 50.0 % of the mult.*frozen.*50.0 %.*: teacher\.\*"
    ):
        fit(model, [callback])
    assert names(callback) == ["net.0.weight", "net.2.weight"]
    assert all(torch.equal(a, b) for a, b in zip(before, model.teacher.parameters(), strict=True))
    named = FocusedCompression(0.9, include=["teacher.0.weight", "net.*"])
    fit(model, [named])
    assert names(named) == ["net.0.weight", "net.2.weight", "teacher.0.weight"]


class OneOptimised(Student):
    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 1e-3)


def test_a_teacher_that_nobody_optimises_is_left_alone_though_it_is_not_frozen():
    model = seeded(lambda: OneOptimised(mlp(), teacher=mlp()))
    callback = FocusedCompression(0.5, activations=8)
    with pytest.warns(UserWarning, match=r"in no optimiser .*: teacher\.\*"):
        fit(model, [callback])
    assert names(callback) == ["net.0.weight", "net.2.weight"]
    assert set(callback._attachment.activations) == {"net.0", "net.2"}
    search = LowPrecisionSearch(weights=(2, 8), activations=(8,), cost="bits", warmup=0.0, freeze=0.5)
    fit(seeded(lambda: OneOptimised(mlp(), teacher=mlp())), [search])
    assert set(search.plan.weights) == {"net.0.weight", "net.2.weight"}
    assert set(search.plan.activations) == {"net.0", "net.2"}


def test_what_the_user_leaves_out_is_no_warning(monkeypatch):
    lines = []
    monkeypatch.setattr("lightning_effnn.callbacks._first_batches.rank_zero_info", lines.append)
    model = seeded(lambda: Student(mlp(), teacher=mlp().requires_grad_(False)))
    with warnings.catch_warnings(record=True) as raised:
        fit(model, [FocusedCompression(0.9, exclude=["teacher.*"])])
    assert not [w for w in raised if "takes" in str(w.message)]
    (said,) = [line for line in lines if "left out" in line]
    assert "by include and exclude (50.0 % of the multiply-accumulates" in said


def test_what_is_frozen_is_decided_as_the_fit_begins():
    class Toggling(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            self.net[2].requires_grad_(True)

        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.net[2].requires_grad_(False)  # as who trains two networks in turn may leave it

    callback = FocusedCompression(0.5)
    fit(seeded(lambda: Toggling(mlp())), [callback])
    assert names(callback) == ["net.0.weight", "net.2.weight"]


class Scaled(nn.Linear):
    """A layer whose weight is standardised before it multiplies."""

    def forward(self, x):
        w = self.weight
        return F.linear(x, (w - w.mean(1, keepdim=True)) / w.std(1, keepdim=True), self.bias)


def test_a_standardised_weight_is_left_with_the_reason(tmp_path):
    model = seeded(lambda: Classifier(nn.Sequential(Scaled(16, 32), nn.ReLU(), nn.Linear(32, 4))))
    callback = FocusedCompression(0.9)
    with pytest.warns(UserWarning, match=r"(?s)goes through sub before the product.*: net\.0\.weight"):
        fit(model, [callback])
    assert names(callback) == ["net.2.weight"]
    assert (model.net[0].weight != 0).all()


class Gan(L.LightningModule):
    """Two networks that train in turn, the generator in every fourth batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(Dense(4, 32), nn.ReLU(), Dense(32, 16))
        self.critic = nn.Sequential(Dense(16, 32), nn.ReLU(), Dense(32, 1))

    def training_step(self, batch, batch_idx):
        generator, critic = self.optimizers()
        x, number = batch[0], self.global_step
        if number % 4 == 3:
            loss = -self.critic(self.generator(torch.randn(len(x), 4))).mean()
            self.step(generator, loss)
        else:
            fake = torch.randn_like(x)
            self.step(critic, self.critic(fake).mean() - self.critic(x).mean())

    def step(self, optimizer, loss):
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.generator.parameters(), 0.01), torch.optim.SGD(self.critic.parameters(), 0.01)


def test_networks_that_take_turns_are_found_one_after_the_other():
    callback = FocusedCompression(0.5)
    fit(seeded(Gan), [callback])
    expected = [f"{net}.{n}.matrix" for net in ("generator", "critic") for n in (0, 2)]
    assert names(callback) == expected
    zeros = {layer.site.name: float((layer.site.parameter == 0).float().mean()) for layer in callback.projector.layers}
    assert callback.projector.sparsity >= 0.5
    assert min(zeros.values()) > 0


def test_a_model_without_a_weight_is_refused_after_the_first_batch():
    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x[:, :4] + self.bias

    with pytest.raises(ValueError, match="no weight to prune or quantise"):
        fit(Classifier(Bias()), [FocusedCompression()])


def test_a_batch_that_cannot_be_looked_at_leaves_the_classes(monkeypatch):
    def broken(self, name, macs, args):
        raise RuntimeError("no such tensor")

    monkeypatch.setattr("lightning_effnn.quantization.find._Watch.multiplied", broken)
    callback = FocusedCompression(0.5)
    with pytest.warns(UserWarning, match="by their classes only.*RuntimeError: no such tensor"):
        fit(seeded(lambda: Classifier(mlp())), [callback])
    assert names(callback) == ["net.0.weight", "net.2.weight"]


def test_a_search_chooses_bits_of_what_multiplies():
    model = seeded(lambda: Classifier(nn.Sequential(Dense(16, 32), nn.ReLU(), Dense(32, 4)), other=nn.Linear(4, 4)))
    model.other.requires_grad_(False)
    callback = LowPrecisionSearch(weights=(2, 8), activations=(8,), cost="bits", warmup=0.0, freeze=0.5)
    fit(model, [callback])
    assert set(callback.plan.weights) == {"net.0.matrix", "net.2.matrix"}
    assert set(callback.plan.activations) == {"net.0", "net.2"}


def test_a_finder_that_is_left_open_does_no_harm():
    model, x = mlp(), torch.randn(2, 16)
    finder = WeightFinder(model)
    finder.open()
    finder.open()
    model(x)
    finder.abandon()
    finder.abandon()
    assert torch.equal(model(x), model(x))
    assert len(weight_sites(model)) == 2
