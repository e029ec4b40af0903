"""Calls that come again: noted once, they lead to what looking at each of them leads to."""

import pytest
import torch
from families_attention import FAMILIES as ATTENTION
from families_convolution import FAMILIES as CONVOLUTION
from families_lookups import FAMILIES as LOOKUPS
from families_other import FAMILIES as OTHER
from families_positions import FAMILIES as POSITIONS
from torch import nn

from lightning_effnn import hardware
from lightning_effnn.formats import declare_format, parse_format
from lightning_effnn.hardware.tracing.recorder import Recorder

FAMILIES = [*ATTENTION, *CONVOLUTION, *LOOKUPS, *OTHER, *POSITIONS]


class Steps(nn.Module):
    """A cell for each of several steps, with the state handed on or made anew each time."""

    def __init__(self, cell, stateful=True, steps=8):
        super().__init__()
        self.cell, self.stateful, self.steps = cell, stateful, steps

    def forward(self, x):
        state, total = None, 0
        for _ in range(self.steps):
            state = self.cell(x, state if self.stateful else None)
            total = total + (state[0] if isinstance(state, tuple) else state)
        return total


class Sparse(nn.Module):
    """Steps that differ in their values only, with states made from sizes, writes in place and a masked weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        self.register_buffer("mask", (torch.arange(36) % 3 > 0).view(6, 6))

    def forward(self, x):
        h, c = torch.zeros(len(x), 6), x.new_ones(len(x), 6)
        for step in range(9):
            h = torch.relu(self.a(x) + self.b(h) * c - 0.1 * step) + torch.zeros_like(h)
            h = h + (h @ (self.a.weight * self.mask).T).relu_()
            c = c * 0.9 + h
            h[:, 0] = 0
            if step % 3 == 0:
                h = torch.cat([h[:, 1:], c[:, :1]], 1)
        return h


def declared():
    model = Steps(nn.GRUCell(5, 6))
    declare_format(model.cell, "weight_hh", parse_format("int4").fit(model.cell.weight_hh.detach()))
    return model


RECURRENT = {
    "gru": lambda: Steps(nn.GRUCell(5, 6)),
    "states made anew": lambda: Steps(nn.GRUCell(5, 6), stateful=False),
    "lstm": lambda: Steps(nn.LSTMCell(5, 6)),
    "double": lambda: Steps(nn.RNNCell(5, 6).double()),
    "declared": declared,
    "one layer again and again": lambda: nn.Sequential(*[nn.Linear(5, 5)] * 6),
    "bidirectional": lambda: nn.GRU(5, 6, 2, bidirectional=True, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3),
    "sparse": Sparse,
}
SHAPES = {"bidirectional": (4, 5), "encoder": (4, 8), "sparse": (6,)}


def _trace(build, *inputs, **settings):
    torch.manual_seed(0)
    model = build()
    torch.manual_seed(1)
    return hardware.trace(model, *inputs, **settings)


def _alone(monkeypatch, build, *inputs, **settings):
    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "meet_again", lambda *_: None)
        return _trace(build, *inputs, **settings)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_are_traced_as_if_each_call_were_the_first(family, monkeypatch):
    for n in (1, 3):
        arguments = (lambda: family.build(n)), *family.batch(n)  # noqa: B023 (called at once)
        assert _trace(*arguments, **family.told(n)) == _alone(monkeypatch, *arguments, **family.told(n))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrences_are_traced_as_if_each_call_were_the_first(name, training, monkeypatch):
    if name == "sparse" and training:
        pytest.skip("it writes into what its gradient needs")
    for n in (1, 4, 6):
        torch.manual_seed(2)
        x = torch.randn(n, *SHAPES.get(name, (5,)), dtype=torch.float64 if name == "double" else None)
        settings = {"training": training, "batch_size": 5}
        assert _trace(RECURRENT[name], x, **settings) == _alone(monkeypatch, RECURRENT[name], x, **settings)


@pytest.mark.parametrize("stateful", [True, False])
@pytest.mark.parametrize("n", [1, 8])
def test_steps_that_come_again_are_not_looked_at_again(stateful, n, monkeypatch):
    looked = []
    look = Recorder.look
    monkeypatch.setattr(Recorder, "look", lambda self, *args, **kw: looked.append(args) or look(self, *args, **kw))
    counts = []
    for steps in (20, 60):
        looked.clear()
        _trace(lambda: Steps(nn.GRUCell(5, 6), stateful, steps), torch.randn(n, 5))  # noqa: B023 (called at once)
        counts.append(len(looked))
    # A state of zeros made anew is joined with the batch each time: that call is looked at.
    assert counts[1] - counts[0] <= (0 if stateful else 3 * 40), counts


def test_steps_keep_the_zeros_of_their_own_values():
    class Ramp(nn.Module):
        def forward(self, x):
            return sum(torch.relu(x - step) for step in range(8))

    x = torch.arange(8.0).repeat(4, 1)
    densities = [o.o_density for o in _trace(Ramp, x).operations if o.op == "relu"]
    assert sum(densities) / len(densities) == pytest.approx(28 / 64)  # they are one operation, or one for each step


def test_results_of_an_operation_may_not_follow_from_its_arguments():
    class Picks(nn.Module):
        def forward(self, x):
            return [torch.masked_select(x, x > step).exp() for step in range(6)]

    x = torch.arange(8.0).repeat(4, 1)
    sizes = [o.elements_out * o.repeats for o in _trace(Picks, x, batch_size=4).operations if o.op == "exp"]
    assert sum(sizes) == 4 * (7 + 6 + 5 + 4 + 3 + 2)


class Learns(nn.Module):
    """Zeros of all steps of all samples, before and after it is known that this is what is in a batch."""

    def __init__(self, times):
        super().__init__()
        self.lin, self.times = nn.Linear(8, 8), times

    def forward(self, x):
        number, steps, _ = x.shape
        for _ in range(self.times):
            torch.zeros(number * steps, 8)
        rows = x.view(number * steps, 8)
        return self.lin(torch.zeros(number * steps, 8)) + rows


def test_what_a_view_teaches_holds_for_calls_that_came_before_it():
    counts = [hardware.trace(Learns(times), torch.rand(6, 5, 8)).macs for times in range(4)]
    assert counts == [5 * 8 * 8] * 4
