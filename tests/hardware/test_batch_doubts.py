"""What a trace of several inferences says it can't be sure of, and the check that compares batches."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_effnn import hardware


class Through(nn.Module):
    """A layer, then whatever ``then(self, rows)`` does with its results."""

    def __init__(self, then):
        super().__init__()
        self.layer, self.second, self.then = nn.Linear(6, 6), nn.Linear(6, 6), then

    def forward(self, x):
        return self.then(self, self.layer(x))


def experts_choose(net, x):
    """The second layer takes the half of all tokens that it likes best, whoseever they are."""
    rows = x.flatten(0, 1)
    best = rows.sum(-1).topk(len(rows) // 2, 0).indices
    return rows.index_add(0, best, net.second(rows[best]))


def attend_to_each_other(net, x):
    return (x[:, 0] @ x[:, 0].T).softmax(0)


def correlate(net, x):
    rows = x.flatten(0, 1)
    return net.second(rows.T @ rows)


def cut_unevenly(net, x):
    rows, n = x.flatten(0, 1), len(x)
    return torch.cat([net.second(part) for part in rows.split([3 * n, 5 * n])])


def split_by_kind(net, x):
    rows = x.flatten(0, 1)
    rows = rows[rows[:, 0].argsort()]
    return torch.cat([net.second(part) for part in rows.split([len(rows) // 4, len(rows) - len(rows) // 4])])


DOUBTS = {
    experts_choose: "topk in the model",
    attend_to_each_other: "_softmax in the model",
    correlate: "sums over the inferences",
    cut_unevenly: "cut elsewhere",
    split_by_kind: "sort in the model",
}


@pytest.mark.parametrize("then", DOUBTS)
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_what_mixes_inferences_is_said_with_the_operation_and_the_module(then, n):
    notes = hardware.trace(Through(then), torch.randn(n, 8, 6)).notes
    assert any(DOUBTS[then] in note for note in notes), notes
    assert all("a batch of one" in note for note in notes)


@pytest.mark.parametrize("then", [*DOUBTS, lambda net, x: net.second(x)])
def test_a_batch_of_one_leaves_nothing_in_doubt(then):
    assert hardware.trace(Through(then), torch.randn(1, 8, 6)).notes == ()


def best_of_each(net, x):
    return net.second(x.gather(1, x.topk(2, 1).indices))


def centred(net, x):
    return net.second(x - x.mean(1, keepdim=True)).cumsum(1)


def attended(net, x):
    return (x @ x.mT).softmax(-1) @ net.second(x)


def two_views(net, x):
    first, second = torch.cat([x, 2 * x]).flatten(0, 1).chunk(2)
    return net.second(first) - net.second(second)


@pytest.mark.parametrize("then", [best_of_each, centred, attended, two_views])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_what_stays_within_a_sample_is_not_doubted(then, n):
    assert hardware.trace(Through(then), torch.randn(n, 8, 6)).notes == ()


def test_work_whose_batch_is_nowhere_is_said():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.ours, self.theirs = nn.Linear(6, 6), nn.Linear(2, 6)

        def forward(self, x, places):
            return self.ours(x) @ self.theirs(places).T

    notes = hardware.trace(Shared(), torch.randn(4, 6), torch.randn(7, 2)).notes
    assert any("addmm in theirs" in note and "counted whole" in note for note in notes)


def test_a_state_of_several_rows_a_sample_that_is_taken_for_a_constant_is_said():
    class Sensors(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.GRUCell(6, 6)

        def forward(self, x):
            state = torch.zeros(4 * len(x), 6)
            for step in range(x.shape[1]):
                state = self.cell(x[:, step].reshape(-1, 6), state)
            return state

    notes = {n: hardware.trace(Sensors(), torch.randn(n, 5, 4, 6)).notes for n in (1, 3)}
    assert notes[1] == ()
    assert any("addmm in cell" in note and "multiple of 3 rows" in note for note in notes[3])


def test_gradients_are_sums_over_the_batch_without_a_doubt():
    net = Through(lambda net, x: net.second(x))
    assert hardware.trace(net, torch.randn(4, 8, 6), training=True).notes == ()


def test_a_network_of_independent_samples_costs_the_same_in_every_batch():
    check = hardware.check_batches(Through(lambda net, x: net.second(x)), torch.randn(7, 8, 6), sizes=(1, 4, 6))
    assert check.agrees
    assert set(check.figures) == {1, 4, 6}
    assert check.modules == {}
    assert check.figures[4]["macs"] == 2 * 8 * 36
    assert "costs the same" in str(check)


def test_the_check_names_figures_and_modules_that_differ():
    def squared(net, x):
        rows = x.flatten(0, 1)
        return net.second(rows.repeat(len(x), 1))

    check = hardware.check_batches(Through(squared), torch.randn(2, 8, 6), accelerator="tpu_like")
    assert not check.agrees
    assert check.differences["macs"] == pytest.approx((5 - 1) / 2)  # of two equal layers the second is done n times
    assert next(iter(check.modules)) == "second"
    assert "macs by 200.0%" in str(check)
    assert "second" in str(check)


class Pair(NamedTuple):
    x: Tensor
    scale: float


@dataclass
class Sample:
    x: Tensor
    scale: float


@pytest.mark.parametrize(
    "given", [Pair(torch.randn(3, 6), 2.0), Sample(torch.randn(3, 6), 2.0), {"x": torch.randn(3, 6), "scale": 2.0}]
)
def test_batches_are_made_of_whatever_holds_the_tensors(given):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, batch):
            x, scale = (batch["x"], batch["scale"]) if isinstance(batch, dict) else (batch.x, batch.scale)
            return self.layer(x) * scale

    check = hardware.check_batches(Scaled(), given)
    assert check.agrees
    assert check.figures[5]["macs"] == 24


def test_batches_are_made_of_lists_of_images():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.layer(torch.stack(images))

    images = [torch.randn(3, 6, 6), torch.randn(3, 6, 6)]
    assert hardware.check_batches(Detector(), images).agrees
    assert len(images) == 2


def test_the_axis_of_the_batches_can_be_said_and_random_numbers_are_left_alone():
    model = nn.LSTM(6, 4)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert hardware.check_batches(model, torch.ones(7, 2, 6), batch_dim=1).agrees
    assert torch.equal(torch.rand(2), expected)


@pytest.mark.parametrize(
    ("given", "options", "said"),
    [
        ((torch.ones(7, 2, 6),), {}, "batch_dim"),  # the layer takes its batch second
        ((torch.ones(7, 2, 6),), {"sizes": (2,)}, "sizes"),
        ((torch.ones(7, 2, 6),), {"sizes": (0, 2)}, "sizes"),
        ((), {}, "no batch"),
        (([torch.ones(7, 2, 6), torch.ones(4, 2, 6)],), {"inferences": 4, "batch_dim": 0}, "unequal"),
    ],
)
def test_what_cannot_be_checked_is_refused(given, options, said):
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(6, 4)

        def forward(self, x=None):
            return self.layer(x)

    with pytest.raises(ValueError, match=said):
        hardware.check_batches(Steps(), *given, **options)


class Halves(nn.Module):
    """Takes even batches alone."""

    def forward(self, x):
        a, b = x.chunk(2)
        return a + b


class Contrast(nn.Module):
    """How alike each sample is to each other one."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x):
        z = self.a(x)
        return z @ z.T


class Chance(nn.Module):
    """Zeros that are drawn, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(8, 8)

    def forward(self, x):
        return self.a(F.dropout(x, 0.5, training=True))


def test_a_model_that_takes_other_batches_is_said_to():
    with pytest.raises(ValueError, match=r"doesn't run on a batch of 1 copies .*check_batches with sizes"):
        hardware.check_batches(Halves(), torch.ones(4, 8))
    hardware.check_batches(Halves(), torch.ones(4, 8), sizes=(2, 4))


def test_products_between_inferences_are_said():
    (note,) = hardware.trace(Contrast(), torch.ones(4, 8)).notes
    assert "mm in the model: each inference of the batch is multiplied with all others" in note
    assert not hardware.trace(Contrast(), torch.ones(1, 8)).notes


def test_chance_is_told_from_what_the_batch_does():
    found = hardware.check_batches(Chance(), torch.ones(4, 8))
    assert "draws random numbers" in found.notes[0]
    assert not any("random" in note for note in hardware.check_batches(nn.Linear(8, 8), torch.ones(4, 8)).notes)
