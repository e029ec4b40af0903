"""Prune, focus, encode: sparse weights as recentralised powers of two in a small file.

>>> import torch
>>> from lightning_effnn import compression
>>> model = torch.nn.Linear(256, 128)
>>> _ = compression.prune_model_(model, sparsity=0.8)
>>> _ = compression.focus_model_(model, bits=5)
>>> import tempfile, pathlib
>>> with tempfile.TemporaryDirectory() as folder:
...     report = compression.save_compressed(model, pathlib.Path(folder) / "model.effnn")
>>> report.ratio > 10
True
"""

from lightning_effnn.compression.activations import quantize_activations_
from lightning_effnn.compression.artifact import (
    inspect_compressed,
    load_compressed,
    measure_compressed,
    read_info,
    save_compressed,
)
from lightning_effnn.compression.errors import ArtifactError
from lightning_effnn.compression.finish import bake_, round_others_
from lightning_effnn.compression.focus import Focused, LayerFocus, focus, focus_model_
from lightning_effnn.compression.following import Following
from lightning_effnn.compression.projector import Projector
from lightning_effnn.compression.pruning import PruneReport, cubic_sparsity, prune_model_
from lightning_effnn.compression.size_report import CompressionReport
from lightning_effnn.compression.stages import Stages

__all__ = [
    "ArtifactError",
    "CompressionReport",
    "Focused",
    "Following",
    "LayerFocus",
    "Projector",
    "PruneReport",
    "Stages",
    "bake_",
    "cubic_sparsity",
    "focus",
    "focus_model_",
    "inspect_compressed",
    "load_compressed",
    "measure_compressed",
    "prune_model_",
    "quantize_activations_",
    "read_info",
    "round_others_",
    "save_compressed",
]
