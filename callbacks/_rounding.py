"""What callbacks that round a network have in common: each number is rounded once, and checkpoints are networks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_effnn.callbacks._base import EffnnCallback, callbacks_of
from lightning_effnn.quantization import Selection, activation_sites

State = dict[str, Any]
"""Of a callback, in a checkpoint: tensors and plain values."""


class RoundingCallback(EffnnCallback):
    """A callback that rounds weights, inputs of layers, or both.

    A checkpoint's state is kept until the model is there: at the start of a fit, a validation, a test or a prediction.

    Args:
        prefix: first part of the logged keys.
        include, exclude: patterns of parameter names, module names or class names.
    """

    def __init__(self, prefix: str, include: Sequence[str] | None, exclude: Sequence[str] | None) -> None:
        super().__init__(prefix)
        self.include, self.exclude = include, exclude
        self._excluded = exclude  # and, in a fit, what nobody optimises
        self._saved: State | None = None  # a checkpoint's state, until the model is there

    @property
    def _kinds(self) -> tuple[bool, bool]:
        """Whether weights are rounded, and whether activations are."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: State) -> None:
        """Kept until the model is there."""
        self._saved = state_dict

    def _take_saved(self) -> State | None:
        saved, self._saved = self._saved, None
        return saved

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Say whose state is wrong, where a checkpoint's was changed or is of something else."""
        try:
            yield
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            raise ValueError(f"the checkpoint's state of {self.state_key} can't be taken: {what}") from error

    def _select(self, trainer: Trainer, pl_module: LightningModule) -> Selection:
        """What is taken of the weights that train in this fit."""
        groups = [group for optimizer in trainer.optimizers for group in getattr(optimizer, "param_groups", ())]
        optimized = [parameter for group in groups for parameter in group["params"]]
        selection = Selection(pl_module, self.include, self.exclude, optimized)
        self._excluded = selection.excluded
        return selection

    def rounds(self, model: nn.Module) -> set[str]:
        """Names of the weights and activations that have to be left alone by others."""
        weights, activations = self._kinds
        names = set()
        if weights:
            names |= {f"weights/{site.name}" for site in Selection(model, self.include, self.exclude).sites}
        if activations:
            names |= {f"activations/{site.name}" for site in activation_sites(model, self.include, self.exclude)}
        return names

    def _check_rounds_alone(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse two callbacks that round the same number: the later would undo the levels of the other.

        Raises:
            MisconfigurationException: names both callbacks, what they share and how to part it.
        """
        mine = self.rounds(pl_module)
        others = [other for other in callbacks_of(trainer) if isinstance(other, RoundingCallback) and other is not self]
        for other in others:
            shared = sorted(mine & other.rounds(pl_module))
            if shared:
                raise MisconfigurationException(
                    f"{self.name} and {other.name} would both round {', '.join(shared)}: leave each to one of them, by"
                    " include and exclude, or in LowPrecisionSearch by weights=() or activations=()"
                )

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test the network that was validated, also where only a checkpoint was loaded."""
        self.on_validation_start(trainer, pl_module)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict with it."""
        self.on_validation_start(trainer, pl_module)


def share_scales(trainer: Trainer, quantizers: nn.Module) -> None:
    """Give all processes the quantisers of the first: each has observed its own batches."""
    if trainer.world_size > 1:
        quantizers.load_state_dict(trainer.strategy.broadcast(quantizers.state_dict()))
