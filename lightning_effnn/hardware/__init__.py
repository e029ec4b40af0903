"""What a run costs on a chip: trace a network, choose an accelerator, read the cost.

>>> import torch
>>> from lightning_effnn import hardware
>>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, 3), torch.nn.ReLU())
>>> trace = hardware.trace(model, torch.rand(4, 1, 8, 8))
>>> report = hardware.estimate(trace, "tpu_like")
>>> report.macs == 8 * 6 * 6 * 9
True
"""

from lightning_effnn.formats.tagging import aside, simulated, tag
from lightning_effnn.hardware.accelerator import Accelerator, presets
from lightning_effnn.hardware.batches import BatchCheck, check_batches
from lightning_effnn.hardware.cost import estimate, estimate_layers
from lightning_effnn.hardware.differentiable import EnergyModel
from lightning_effnn.hardware.memory import Memory, Port, Zeros
from lightning_effnn.hardware.operation import Operation, UnknownOperation
from lightning_effnn.hardware.report import CostReport, LayerCost
from lightning_effnn.hardware.trace import Trace, Tracer, trace
from lightning_effnn.hardware.tracing.rules import register_cost

__all__ = [
    "Accelerator",
    "BatchCheck",
    "CostReport",
    "EnergyModel",
    "LayerCost",
    "Memory",
    "Operation",
    "Port",
    "Trace",
    "Tracer",
    "UnknownOperation",
    "Zeros",
    "aside",
    "check_batches",
    "estimate",
    "estimate_layers",
    "presets",
    "register_cost",
    "simulated",
    "tag",
    "trace",
]
