"""Quantisers speak, whoever watches a run hears."""

import torch

from lightning_effnn.formats import FixedPoint
from lightning_effnn.formats.tagging import aside, listeners, simulated, tag


class Hears:
    def __init__(self):
        self.simulated, self.aside, self.heard = 0, 0, []

    def tag(self, tensor, number_format):
        self.heard.append((tensor, number_format, self.simulated))


def test_every_listener_hears_and_knows_what_is_simulated(monkeypatch):
    first, second = Hears(), Hears()
    monkeypatch.setattr("lightning_effnn.formats.tagging.listeners", [first, second])
    x, int8 = torch.ones(2), FixedPoint(8)
    assert tag(x, int8) is x
    with simulated(), simulated():
        tag(x, int8)
    assert first.heard == second.heard == [(x, int8, 0), (x, int8, 2)]
    assert first.simulated == second.simulated == 0


def test_an_exception_ends_what_is_simulated_and_what_is_aside(monkeypatch):
    hears = Hears()
    monkeypatch.setattr("lightning_effnn.formats.tagging.listeners", [hears])
    for block, name in ((simulated, "simulated"), (aside, "aside")):
        try:
            with block():
                assert getattr(hears, name) == 1
                raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert getattr(hears, name) == 0


def test_a_listener_that_comes_inside_a_block_is_not_told_of_it(monkeypatch):
    late = Hears()
    present = []
    monkeypatch.setattr("lightning_effnn.formats.tagging.listeners", present)
    with aside():
        present.append(late)
        assert late.aside == 0
    assert late.aside == 0


def test_nobody_listens_by_default():
    assert listeners == []
