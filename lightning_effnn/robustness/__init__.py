"""How much energy an adversary's input can cost, and how to bring the worst case down.

>>> import torch
>>> from torch import nn
>>> from lightning_effnn import robustness as rb
>>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
>>> x = torch.rand(3, 4)
>>> crafted = rb.sponge_pgd(model, x, eps=0.2, alpha=0.05, steps=5)
>>> energy = rb.TracedEnergy(model, "eyeriss_like")
>>> bool((energy(crafted) >= energy(x)).float().mean() > 0.5)
True
"""

from lightning_effnn.robustness.activations import Activations
from lightning_effnn.robustness.attacks import random_inputs, sponge_genetic, sponge_lbfgs, sponge_pgd
from lightning_effnn.robustness.energy import DensityEnergy, TracedEnergy
from lightning_effnn.robustness.evaluation import ATTACKS, Outcome, SpongeReport, evaluate
from lightning_effnn.robustness.guard import EnergyGuard, GenerationGuard, SpongeError, Verdict
from lightning_effnn.robustness.objectives import Density, layer_weights, smooth_l0
from lightning_effnn.robustness.rectifiers import live_rectifiers
from lightning_effnn.robustness.sequences import GenerationEnergy, SequenceEnergy, WallTime, tolerance_limit
from lightning_effnn.robustness.text import sponge_text_genetic, sponge_text_random
from lightning_effnn.robustness.training import SpongePenalty

__all__ = [
    "ATTACKS",
    "Activations",
    "Density",
    "DensityEnergy",
    "EnergyGuard",
    "GenerationEnergy",
    "GenerationGuard",
    "Outcome",
    "SequenceEnergy",
    "SpongeError",
    "SpongePenalty",
    "SpongeReport",
    "TracedEnergy",
    "Verdict",
    "WallTime",
    "evaluate",
    "layer_weights",
    "live_rectifiers",
    "random_inputs",
    "smooth_l0",
    "sponge_genetic",
    "sponge_lbfgs",
    "sponge_pgd",
    "sponge_text_genetic",
    "sponge_text_random",
    "tolerance_limit",
]
