"""Choosing, while training, among many networks: gates, controllers, costs.

The graph networks to choose among are in :mod:`lightning_effnn.search.graph`.

>>> import torch
>>> from lightning_effnn.search import Controller
>>> controller = Controller({"bits": (4, 8)}, seed=1)
>>> controller.sample(noise=0.0)["bits"].tolist()
[1.0, 0.0]
"""

from lightning_effnn.search.controller import Controller, Gates
from lightning_effnn.search.cost import CostModel, CostTerm
from lightning_effnn.search.relaxation import annealed, gumbel_noise, mixture, top1
from lightning_effnn.search.sizes import Sizes, Stored
from lightning_effnn.search.surrogate import AdditiveSurrogate

__all__ = [
    "AdditiveSurrogate",
    "Controller",
    "CostModel",
    "CostTerm",
    "Gates",
    "Sizes",
    "Stored",
    "annealed",
    "gumbel_noise",
    "mixture",
    "top1",
]
