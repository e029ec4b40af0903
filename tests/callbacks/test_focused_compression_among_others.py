"""FocusedCompression in fits in which others than Lightning's own optimiser move the weights."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_effnn.callbacks import FocusedCompression

pytestmark = pytest.mark.trains


def data(n, seed):
    x = torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))
    rule = torch.randn(12, 3, generator=torch.Generator().manual_seed(7))
    return TensorDataset(x, (torch.tanh(x) @ rule).argmax(1))


TRAIN, HELD_OUT = data(384, 0), data(512, 1)


def accuracy(net):
    x, y = HELD_OUT.tensors
    with torch.no_grad():
        return float((net.eval()(x).argmax(1) == y).float().mean())


class Net(L.LightningModule):
    def __init__(self, manual=True):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 3))
        self.automatic_optimization = not manual

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), 3e-3)


class Raw(Net):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class Scaler(Net):
    def __init__(self):
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=128.0)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers().optimizer
        optimizer.zero_grad()
        self.manual_backward(self.scaler.scale(self.loss(batch)))
        self.scaler.step(optimizer)
        self.scaler.update()


class Sharpness(torch.optim.Adam):
    @torch.no_grad()
    def up(self):
        for p in self.param_groups[0]["params"]:
            p.add_(p.grad, alpha=0.02 / float(p.grad.norm() + 1e-12))
            self.state.setdefault("moves", {})[p] = p.grad * (0.02 / float(p.grad.norm() + 1e-12))

    @torch.no_grad()
    def down(self):
        for p, moved in self.state.pop("moves").items():
            p.sub_(moved)
        self.step()


class TwoSteps(Net):
    def configure_optimizers(self):
        return Sharpness(self.net.parameters(), 3e-3)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.up()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.down()


class InBackward(Net):
    """One optimiser a parameter, which steps as soon as its gradient is there."""

    def configure_optimizers(self):
        def step(optimizer):
            def stepping(_):
                optimizer.step()
                optimizer.zero_grad()

            return stepping

        for parameter in self.net.parameters():
            parameter.register_post_accumulate_grad_hook(step(torch.optim.Adam([parameter], 3e-3)))

    def training_step(self, batch, batch_idx):
        self.manual_backward(self.loss(batch))


class Lookahead(torch.optim.Adam):
    def step(self, closure=None):
        loss = super().step(closure)
        self.count = getattr(self, "count", 0) + 1
        if self.count % 5 == 0:
            for p in self.param_groups[0]["params"]:
                slow = self.state[p].setdefault("slow", p.detach().clone())
                slow.lerp_(p.detach(), 0.5)
                p.data.copy_(slow)
        return loss


class Wrapped(Net):
    def __init__(self):
        super().__init__(manual=False)

    def configure_optimizers(self):
        return Lookahead(self.net.parameters(), 3e-3)


def fit(kind, callbacks, epochs=8, **kw):
    L.seed_everything(0, verbose=False)
    model = kind()
    L.Trainer(
        max_epochs=epochs, callbacks=callbacks, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **kw,
    ).fit(model, DataLoader(TRAIN, 24))  # fmt: skip
    return model


def compression(**kw):
    return FocusedCompression(**({"sparsity": 0.5, "prune": (0.1, 0.4), "quantize": (0.4, 0.7)} | kw))


@pytest.mark.parametrize("kind", [Raw, Scaler, TwoSteps, InBackward, Wrapped], ids=lambda kind: kind.__name__)
def test_a_network_learns_as_well_as_without_the_callback(kind):
    start, callback = accuracy(kind().net), compression()
    model = fit(kind, [callback])
    assert accuracy(model.net) > accuracy(fit(kind, []).net) - 0.04 > start + 0.2
    assert callback.projector.sparsity == pytest.approx(0.5, abs=0.08)
    assert all(len(layer.site.parameter.unique()) <= 19 for layer in callback.projector.layers)


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start"])
def test_weights_that_a_hook_loads_are_those_that_train(hook):
    trained = fit(Raw, []).net

    class Loads(Raw):
        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), 1e-6)

    def load(self):
        self.net.load_state_dict(trained.state_dict())

    setattr(Loads, hook, load)
    callback = compression(sparsity=0.3, prune=(0.5, 0.7), quantize=None)
    model = fit(Loads, [callback], epochs=2)
    assert accuracy(model.net) > accuracy(trained) - 0.05
    kept = callback.projector.layers[2].mask
    assert torch.allclose(model.net[2].weight[callback.projector.layers[1].mask],
                          trained[2].weight[callback.projector.layers[1].mask], atol=1e-3)  # fmt: skip
    assert kept.any()


class Teacher(Net):
    """A copy of the network that follows it slowly, or every eighth step."""

    def __init__(self, follow):
        super().__init__(manual=False)
        self.teacher, self.follow = copy.deepcopy(self.net).requires_grad_(False), follow

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.follow(self, batch_idx)


def slowly(module, _):
    with torch.no_grad():
        for mine, p in zip(module.teacher.parameters(), module.net.parameters(), strict=True):
            mine.data.lerp_(p.data, 0.1)


def now_and_then(module, batch_idx):
    if batch_idx % 8 == 0:
        module.teacher.load_state_dict(module.net.state_dict())


@pytest.mark.parametrize("follow", [slowly, now_and_then], ids=lambda follow: follow.__name__)
def test_a_teacher_that_is_compressed_too_follows_the_network(follow):
    plain = fit(lambda: Teacher(follow), [])
    model = fit(lambda: Teacher(follow), [compression(include=["net.*", "teacher.*"])])
    assert accuracy(model.teacher) > accuracy(plain.teacher) - 0.05


class Diverges(Net):
    def __init__(self):
        super().__init__(manual=False)

    def training_step(self, batch, batch_idx):
        return self.loss(batch) * (float("nan") if self.global_step == 20 else 1.0)


def test_a_fit_that_diverges_says_so_and_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"NaN or infinity in net\.0\.weight, .* after 21 optimiser steps"):
        fit(Diverges, [compression(export=tmp_path / "model.effnn")])
    assert not list(tmp_path.iterdir())


def test_a_fit_s_own_error_comes_first():
    class Watches(Diverges):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.global_step > 20 and loss.isnan():
                raise ArithmeticError("my own words")
            return loss

    with pytest.raises(ArithmeticError, match="my own words"):
        fit(Watches, [compression(prune=(0.0, 0.1), quantize=(0.1, 0.2))])
