"""Attach number formats to any model, take them off again, say what was covered.

>>> import torch
>>> from lightning_effnn import quantization
>>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
>>> attachment = quantization.quantize_(model, "W8A8")
>>> _ = model(torch.randn(32, 8))  # in train mode the ranges of the activations are observed
>>> quantization.coverage(model, torch.randn(1, 8)).share
1.0
>>> _ = quantization.bake_(model)
"""

from lightning_effnn.quantization.attach import Attachment, attach_, exact_activations, settled_ranges, strip_
from lightning_effnn.quantization.coverage import CoverageReport, coverage
from lightning_effnn.quantization.find import WeightFinder, find_weights_
from lightning_effnn.quantization.model import bake_, quantize_
from lightning_effnn.quantization.plan import PRESETS, AverageBits, QuantizationPlan
from lightning_effnn.quantization.quantizer import TensorQuantizer
from lightning_effnn.quantization.scales import ScaleOptimizer
from lightning_effnn.quantization.selection import LeftOut, Selection
from lightning_effnn.quantization.sites import ActivationSite, Site, activation_sites, weight_sites
from lightning_effnn.quantization.weights import declare_weight, forget_weights

__all__ = [
    "PRESETS",
    "ActivationSite",
    "Attachment",
    "AverageBits",
    "CoverageReport",
    "LeftOut",
    "QuantizationPlan",
    "ScaleOptimizer",
    "Selection",
    "Site",
    "TensorQuantizer",
    "WeightFinder",
    "activation_sites",
    "attach_",
    "bake_",
    "coverage",
    "declare_weight",
    "exact_activations",
    "find_weights_",
    "forget_weights",
    "quantize_",
    "settled_ranges",
    "strip_",
    "weight_sites",
]
