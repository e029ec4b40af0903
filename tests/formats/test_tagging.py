"""Quantisers speak, whoever watches a run in this thread hears."""

import threading

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_effnn.formats import FixedPoint
from lightning_effnn.formats.tagging import aside, listeners, simulated, tag

INT8 = FixedPoint(8)


class Hears(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.simulated, self.aside, self.heard = 0, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))

    def tag(self, tensor, number_format):
        self.heard.append((tensor, number_format, self.simulated))


def test_every_listener_hears_and_knows_what_is_simulated():
    first, second = Hears(), Hears()
    x = torch.ones(2)
    with first, second:
        assert tag(x, INT8) is x
        with simulated(), simulated():
            tag(x, INT8)
    assert first.heard == second.heard == [(x, INT8, 0), (x, INT8, 2)]
    assert first.simulated == second.simulated == 0


@pytest.mark.parametrize(("block", "name"), [(simulated, "simulated"), (aside, "aside")])
def test_an_exception_ends_what_is_simulated_and_what_is_aside(block, name):
    hears = Hears()

    def interrupted():
        with hears, block():
            assert getattr(hears, name) == 1
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert getattr(hears, name) == 0


def test_a_listener_that_comes_inside_a_block_is_not_told_of_it():
    late = Hears()
    with aside(), late:
        assert late.aside == 0
    assert late.aside == 0


def test_nobody_listens_by_default():
    assert listeners() == []


def test_another_thread_is_not_heard():
    hears = Hears()

    def speak():
        with simulated():
            tag(torch.ones(1), INT8)

    with hears:
        other = threading.Thread(target=speak)
        other.start()
        other.join()
    assert (hears.heard, hears.simulated) == ([], 0)


def test_what_a_backward_pass_says_is_heard():
    class Speaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return tag(grad.clone(), INT8)

    hears = Hears()
    with hears:
        Speaks.apply(torch.ones(2, requires_grad=True)).sum().backward()
    assert [number_format for _, number_format, _ in hears.heard] == [INT8]
