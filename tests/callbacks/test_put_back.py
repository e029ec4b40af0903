"""What a module holds is as it was after somebody else has run it."""

import copy
import types
from collections import UserDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from lightning_effnn.callbacks._held_out import _takes_number
from lightning_effnn.callbacks._put_back import put_back


class Meter:
    def __init__(self):
        self.count, self.sums, self.by_class = 0, torch.zeros(2), {"a": [0]}


class Stubborn(dict):
    """As outputs of some libraries are."""

    def update(self, *_):
        raise TypeError("no")

    clear = update


class Holder(nn.Module):
    """Keeps state in every way that users do."""

    def __init__(self):
        super().__init__()
        self.net, self.frozen = nn.Linear(2, 2), nn.Parameter(torch.zeros(2), requires_grad=False)
        self.register_buffer("queue", torch.zeros(3))
        self.register_buffer("mask", torch.zeros(1).expand(4))
        self.averages, self.teacher = {"weight": torch.zeros(2)}, [nn.Linear(2, 2)]
        self.history, self.counts = defaultdict(list), {"steps": [0]}
        self.meter, self.space, self.array = Meter(), types.SimpleNamespace(k=0), np.zeros(2)
        self.generator = torch.Generator().manual_seed(3)
        self.cache, self.outputs, self.plain = torch.zeros(1, 2), Stubborn(a=1), UserDict(n=0)
        self.itself = [self]

    def step(self):
        with torch.no_grad():
            self.frozen.add_(1)
            self.teacher[0].weight.add_(1)
        self.queue.data = torch.ones(5)
        self.averages["weight"].lerp_(torch.ones(2), 0.5)
        self.history["loss"].append(1.0)
        self.counts["steps"][0] += 1
        self.meter.count += 1
        self.meter.sums.add_(1)
        self.meter.by_class["a"][0] += 1
        self.space.k += 1
        self.array += 1
        self.drawn = torch.rand((), generator=self.generator).item()
        self.cache.data = torch.cat([self.cache, torch.ones(1, 2)])
        self.plain["n"] += 1
        self.outputs = Stubborn(a=2)
        if not hasattr(self, "centre"):
            self.register_buffer("centre", torch.ones(2))
            self.late = nn.Linear(2, 2)
        self.train(not self.training)


def seen_in(holder):
    return {
        "state": {name: value.tolist() for name, value in holder.state_dict().items()},
        "teacher": holder.teacher[0].weight.tolist(),
        "averages": holder.averages["weight"].tolist(),
        "plain": (dict(holder.history), holder.counts["steps"][0], dict(holder.plain), dict(holder.outputs)),
        "meter": (holder.meter.count, holder.meter.sums.tolist(), holder.meter.by_class["a"][0], holder.space.k),
        "array": (holder.array.tolist(), holder.cache.tolist()),
        "names": (sorted(vars(holder)), sorted(dict(holder.named_modules())), holder.training, holder.net.training),
    }


def test_whatever_a_step_writes_is_put_back():
    holder = Holder()
    objects = {name: id(value) for name, value in vars(holder).items()}
    before, random = seen_in(holder), holder.generator.get_state()
    with put_back(holder, trained=()):
        holder.step()
        assert seen_in(holder) != before
    assert seen_in(holder) == before
    assert torch.equal(holder.generator.get_state(), random)
    assert {name: id(value) for name, value in vars(holder).items()} == objects


def test_steps_with_others_between_them_end_as_steps_alone():
    alone = Holder()
    disturbed = copy.deepcopy(alone)
    disturbed.generator.set_state(alone.generator.get_state())
    for holder in (alone, disturbed):
        torch.manual_seed(0)
        holder.step()
        if holder is disturbed:
            with put_back(holder, trained=()):
                holder.step()
        holder.step()
    assert seen_in(alone) == seen_in(disturbed)
    assert alone.drawn == disturbed.drawn


def test_values_of_what_trains_are_left_to_the_optimiser():
    layer = nn.Linear(2, 2)
    place = layer.weight.data_ptr()
    with put_back(layer, trained={id(layer.weight)}), torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.data = torch.ones(2)
    assert layer.weight.eq(1).all()
    assert layer.weight.data_ptr() == place
    assert not layer.bias.eq(1).any()


@pytest.mark.parametrize(
    ("step", "takes"),
    [
        (lambda batch: None, False),
        (lambda batch, batch_idx: None, True),
        (lambda batch, **options: None, False),
        (lambda *batch_and_number: None, True),
    ],
)
def test_a_step_is_called_as_lightning_calls_it(step, takes):
    assert _takes_number(step) == takes
