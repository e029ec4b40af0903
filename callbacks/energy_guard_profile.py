"""Profile a guard on the validation data of a fit, so that each checkpoint has the limits of its weights."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from safetensors.torch import save_file
from torch import Tensor

from lightning_effnn._files import write_whole
from lightning_effnn.callbacks._base import EffnnCallback
from lightning_effnn.callbacks._batches import inputs_of
from lightning_effnn.robustness.guard import EnergyGuard, Policy, check_policy, check_shares
from lightning_effnn.robustness.sequences import samples_needed

_LIMITS = ("most_length", "most_density", "profiled")


class EnergyGuardProfile(EffnnCallback):
    """Watches validation batches as they run, and sets the limits of a guard by them: no forward pass is added.

    Logged at each validation: ``guard/most_length`` and ``guard/most_density``.

    The limits are in this callback's state in each checkpoint, and in ``path`` after the fit. In service:
    ``guard = EnergyGuard(net); guard.load_state_dict(load_file(path), strict=False)``.

    Args:
        quantile: share of natural inputs that passes, in (0, 1].
        confidence: that no more than the rest is refused, in (0, 1).
        policy: of the guard: ``"raise"``, ``"truncate"`` or ``"flag"``.
        padding: of tokens, not counted; None counts all.
        path: a safetensors file for the limits; None writes none.
        prefix: first part of the logged keys.

    Attributes:
        guard: around the module that was trained, from ``setup`` on.

    Raises:
        ValueError: an argument out of range.
        MisconfigurationException: a fit without validation data, or one whose strategy shards weights.
        TypeError: in validation, batches whose first part is no tensor.

    Example:
        >>> EnergyGuardProfile(quantile=0.99, policy="flag").policy
        'flag'

    Source: Shumailov et al. (2021), "Sponge Examples", arXiv 2006.03463, section VII.
    """

    def __init__(
        self,
        quantile: float = 0.999,
        confidence: float = 0.95,
        policy: Policy = "raise",
        padding: int | None = 0,
        path: str | Path | None = None,
        *,
        prefix: str = "guard",
    ) -> None:
        check_shares(quantile, confidence)
        check_policy(policy)
        if path is not None and Path(path).suffix != ".safetensors":
            raise ValueError(f"path={str(path)!r}: a name that ends in .safetensors is needed")
        super().__init__(prefix)
        self.quantile, self.confidence, self.policy = quantile, confidence, policy
        self.padding, self.path = padding, path
        self.guard: EnergyGuard | None = None
        self._limits: dict[str, float] = {}
        self._watching: AbstractContextManager[None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put a guard around the module; the module isn't changed."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self.guard = EnergyGuard(pl_module, self.policy, self.padding)
            self._restore()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a fit that has nothing to profile with."""
        self._needs_validation(trainer, "natural inputs to profile with")
        super().on_fit_start(trainer, pl_module)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to watch."""
        if self.guard is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._watching = self.guard.watching(inputs_of(batch, self.name))
        self._watching.__enter__()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Note what the batch was like."""
        self._let_go()

    def _let_go(self) -> None:
        """Watch no longer: no hook is left on the model."""
        if self._watching is not None:
            self._watching.__exit__(None, None, None)
            self._watching = None

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the limits, by what all processes saw."""
        if self.guard is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, at the end of the fit
            self.guard.settle(self.quantile, self.confidence, _of_all_processes)
        self._limits = {name: float(getattr(self.guard, name)) for name in _LIMITS}
        self._log(pl_module, {name: self._limits[name] for name in _LIMITS[:2]})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, and say what the limits are."""
        if self.guard is None or not self._limits:
            return
        seen, share = int(self.guard.profiled), (1 - self.quantile) / 2
        if share > 0 and seen < samples_needed(share, self.confidence):
            self._warn(
                f"{seen} validation inputs don't tell what {1 - self.quantile:.2g} of all exceed;"
                " the limits may be the largest values seen"
            )
        self._say(
            f"{seen} inputs, at most {self._limits['most_length']:g} tokens or elements and a"
            f" density of {self._limits['most_density']:.3f}"
        )
        if self.path is not None and trainer.is_global_zero:
            limits = {name: torch.tensor(self._limits[name], device="cpu") for name in _LIMITS[:2]}
            limits["profiled"] = torch.tensor(seen, device="cpu")
            write_whole(self.path, lambda beside: save_file(limits, beside))

    def state_dict(self) -> dict[str, float]:
        """The limits."""
        return dict(self._limits)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the limits of a checkpoint."""
        self._limits = dict(state_dict)
        self._restore()

    def _restore(self) -> None:
        if self.guard is not None:
            for name, value in self._limits.items():
                getattr(self.guard, name).fill_(value)


def _of_all_processes(values: Tensor) -> Tensor:
    """One number a sample ``[B]``, those of every process; they may have seen unequal numbers of samples."""
    if not (dist.is_available() and dist.is_initialized()):
        return values
    parts = [values] * dist.get_world_size()
    dist.all_gather_object(parts, values.cpu())
    return torch.cat(parts)
