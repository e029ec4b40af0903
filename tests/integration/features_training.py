"""Features of the matrix: how networks are stepped, and what networks they are."""

import lightning as L
import networks
import torch
from callback_cases import (
    BATCHES,
    EPOCHS,
    equal_states,
    fit,
    network,
    same_as_plain,
    trained,
)
from features import Features
from networks import seeded

FEATURES = Features()
feature = FEATURES.put


@feature("automatic optimisation")
def _(case, folder):
    """keeps its promise; a callback that only watches leaves the fit bit-identical"""
    run = fit(case, folder)
    assert run.trainer.global_step == EPOCHS * BATCHES
    same_as_plain(case, run, folder)


@feature("manual optimisation")
def _(case, folder):
    """follows the steps that the user takes"""
    run = fit(case, folder, model=network(manual=True))
    assert run.model.steps == EPOCHS * BATCHES
    same_as_plain(case, run, folder, model=network(manual=True))


@feature("several optimisers")
def _(case, folder):
    """both of them move their part"""
    run = fit(case, folder, model=network(manual=True, optimizers=2))
    assert run.model.steps == 2 * EPOCHS * BATCHES
    start = network().state_dict()
    assert not torch.equal(run.model.a[0].weight, start["a.0.weight"])
    assert not torch.equal(run.model.b[3].weight, start["b.3.weight"])
    same_as_plain(case, run, folder, model=network(manual=True, optimizers=2))


@feature("raw optimiser")
def _(case, folder):
    """steps that Lightning does not see end as those that it sees, bit for bit"""
    run = fit(case, folder, model=network(manual=True, raw=True))
    assert run.trainer.global_step == 0
    assert equal_states(run.model, fit(case, folder, model=network(manual=True)).model)


@feature("optimiser in the backward pass")
def _(case, folder):
    """one for each parameter, which steps as soon as its gradient is there: as one for all, bit for bit"""

    def step(optimizer):
        def stepping(_):
            optimizer.step()
            optimizer.zero_grad()

        return stepping

    model = network(manual=True)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(step(torch.optim.Adam([parameter], 0.02)))
    model.configure_optimizers = lambda: None
    model.optimizers = lambda **_: []
    model.training_step = lambda batch, batch_idx: model.manual_backward(model.loss(batch))
    run = fit(case, folder, model=model)
    assert equal_states(run.model, fit(case, folder, model=network(manual=True)).model)


@feature("SAM")
def _(case, folder):
    """a step of two gradients by its closure: uphill the loss is larger, and the way back ends where it began"""
    run = fit(case, folder, model=seeded(networks.Sharp))
    climbs_and_comes_back(run.trainer.optimizers[0])
    same_as_plain(case, run, folder, model=seeded(networks.Sharp))


def climbs_and_comes_back(optimizer):
    """That it comes back the optimiser asserts itself."""
    assert len(optimizer.losses) == EPOCHS * BATCHES
    assert sum(above > here for here, above in optimizer.losses) > 0.8 * len(optimizer.losses)


@feature("SAM in two calls")
def _(case, folder):
    """up, and down by the gradient there: uphill the loss is larger, and the way back ends where it began"""
    run = fit(case, folder, model=seeded(networks.SharpInTwoCalls))
    climbs_and_comes_back(run.trainer.optimizers[0])
    same_as_plain(case, run, folder, model=seeded(networks.SharpInTwoCalls))


@feature("Lookahead")
def _(case, folder):
    """every fourth step half of the way back: what trains ends as the slow weights"""
    run = fit(case, folder, model=seeded(networks.LookingAhead))
    (optimizer,) = run.trainer.optimizers
    assert optimizer.steps == EPOCHS * BATCHES
    for name, value in trained(run.model, run.callback).items():
        slow = optimizer.state[run.model.get_parameter(name)]["slow"]
        assert torch.allclose(value, slow, atol=1e-6), name
    same_as_plain(case, run, folder, model=seeded(networks.LookingAhead))


@feature("schedule-free")
def _(case, folder):
    """steps at a mean, is validated and ends at the average; on the way there and back nothing is lost"""

    class ThereAndBack(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            self.stepping = trained(pl_module, trainer.callbacks[-1])

        def on_validation_start(self, trainer, pl_module):
            self.average, states = trained(pl_module, trainer.callbacks[-1]), trainer.optimizers[0].state
            for name, average in self.average.items():
                expected = average.lerp(states[pl_module.get_parameter(name)]["z"], 0.1)
                assert torch.allclose(self.stepping[name], expected, atol=1e-5), name

        def on_train_epoch_end(self, trainer, pl_module):
            for name, value in trained(pl_module, trainer.callbacks[-1]).items():
                assert torch.allclose(value, self.stepping[name], atol=1e-5), name

    seen = ThereAndBack()
    run = fit(case, folder, model=seeded(networks.WithoutSchedule), others=[seen])
    for name, value in trained(run.model, run.callback).items():
        assert torch.allclose(value, seen.average[name], atol=1e-5), name
    same_as_plain(case, run, folder, model=seeded(networks.WithoutSchedule))


@feature("momentum encoder")
def _(case, folder):
    """moved in each training step, and by it alone: the mean of what the network was, bit for bit, and not taken"""
    run = fit(case, folder, model=seeded(networks.Followed))
    assert len(run.model.seen) == EPOCHS * BATCHES
    follows = seeded(networks.Followed)
    for online in run.model.seen:
        for mine, p in zip(follows.target.parameters(), online, strict=True):
            mine.detach().mul_(follows.rate).add_(p, alpha=1 - follows.rate)
    assert all(map(torch.equal, run.model.target.parameters(), follows.target.parameters()))
    same_as_plain(case, run, folder, model=seeded(networks.Followed))


@feature("frozen teacher")
def _(case, folder):
    """is not taken, and bit-identical after the fit, its statistics too"""
    run = fit(case, folder, model=seeded(networks.Taught))
    assert equal_states(run.model.teacher, seeded(networks.Taught).teacher)
    same_as_plain(case, run, folder, model=seeded(networks.Taught))


@feature("LoRA")
def _(case, folder):
    """adapters are what is taken, and train; what is under them is bit-identical after the fit"""
    start = seeded(networks.Adapted)
    run = fit(case, folder, model=seeded(networks.Adapted))
    for name, parameter in start.named_parameters():
        assert torch.equal(parameter, run.model.get_parameter(name)) != parameter.requires_grad, name
    same_as_plain(case, run, folder, model=seeded(networks.Adapted))


@feature("tied embeddings")
def _(case, folder):
    """a weight in two places is one: taken once, and the same in both after the fit"""
    loaders = networks.words(), networks.words(2)
    run = fit(case, folder, model=seeded(networks.Words), loaders=loaders)
    assert run.model.a[0].weight is run.model.b[3].weight
    same_as_plain(case, run, folder, model=seeded(networks.Words), loaders=loaders)


@feature("gradient checkpointing")
def _(case, folder):
    """layers that run again in the backward pass end as those that ran once, bit for bit"""
    run = fit(case, folder, model=seeded(networks.Checkpointed, reentrant=False))
    assert equal_states(run.model, fit(case, folder).model)


@feature("gradient checkpointing, reentrant")
def _(case, folder):
    """layers that run again in the backward pass end as those that ran once, bit for bit"""
    run = fit(case, folder, model=seeded(networks.Checkpointed, reentrant=True))
    assert equal_states(run.model, fit(case, folder).model)
