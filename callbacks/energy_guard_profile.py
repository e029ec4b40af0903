"""Profile a guard on the validation data of a fit, so that each checkpoint has the limits of its weights."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from safetensors.torch import save_file
from torch import Tensor

from lightning_effnn._files import write_whole
from lightning_effnn.callbacks._refusals import check_whole_weights
from lightning_effnn.callbacks._reporting import log_parameters
from lightning_effnn.robustness.guard import EnergyGuard, Policy, check_policy, check_shares
from lightning_effnn.robustness.sequences import samples_needed

_LIMITS = ("most_length", "most_density", "profiled")


class EnergyGuardProfile(Callback):
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
        self.quantile, self.confidence, self.policy = quantile, confidence, policy
        self.padding, self.path, self.prefix = padding, path, prefix
        self.guard: EnergyGuard | None = None
        self._limits: dict[str, float] = {}
        self._watching: AbstractContextManager[None] | None = None

    @property
    def state_key(self) -> str:
        """Fixed by the prefix."""
        return f"{type(self).__name__}[{self.prefix}]"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put a guard around the module; the module isn't changed."""
        if stage != "fit":
            return
        check_whole_weights(trainer, self)
        self.guard = EnergyGuard(pl_module, self.policy, self.padding)
        self._restore()

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a fit that has nothing to profile with."""
        if not trainer.enable_validation:
            raise MisconfigurationException("EnergyGuardProfile needs validation data: natural inputs to profile with")
        log_parameters(trainer, self)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Begin to watch."""
        if self.guard is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        x = batch[0] if isinstance(batch, list | tuple) else batch
        if not isinstance(x, Tensor):
            raise TypeError(f"a batch begins with a {type(x).__name__}: EnergyGuardProfile needs a tensor of inputs")
        self._watching = self.guard.watching(x)
        self._watching.__enter__()

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Note what the batch was like."""
        if self._watching is not None:
            self._watching.__exit__(None, None, None)
            self._watching = None

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Set the limits, by what all processes saw."""
        if self.guard is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said once, at the end of the fit
            self.guard.settle(self.quantile, self.confidence, _of_all_processes)
        self._limits = {name: float(getattr(self.guard, name)) for name in _LIMITS}
        for name in _LIMITS[:2]:
            pl_module.log(f"{self.prefix}/{name}", self._limits[name], sync_dist=True)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the file, and say what the limits are."""
        if self.guard is None or not self._limits:
            return
        seen, share = int(self.guard.profiled), (1 - self.quantile) / 2
        if share > 0 and seen < samples_needed(share, self.confidence):
            rank_zero_warn(
                f"EnergyGuardProfile: {seen} validation inputs don't tell what {1 - self.quantile:.2g} of all exceed;"
                " the limits may be the largest values seen"
            )
        rank_zero_info(
            f"EnergyGuardProfile: {seen} inputs, at most {self._limits['most_length']:g} tokens or elements and a"
            f" density of {self._limits['most_density']:.3f}"
        )
        if self.path is not None and trainer.is_global_zero:
            limits = {name: torch.tensor(self._limits[name], device="cpu") for name in _LIMITS[:2]}
            limits["profiled"] = torch.tensor(seen, device="cpu")
            write_whole(self.path, lambda beside: save_file(limits, beside))

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Take the hooks off the model."""
        self.on_validation_batch_end(trainer, pl_module, None, None, 0)

    def state_dict(self) -> dict[str, Any]:
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
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, values.cpu())
    return torch.cat(parts)
