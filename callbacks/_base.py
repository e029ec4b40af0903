"""What all callbacks have in common: a name of their own, logged parameters, words, figures, refusals, an end.

Trainer and module are typed as those of ``lightning``. Those of ``pytorch_lightning`` have the same attributes, and
nothing here asks of which of the two they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from lightning_effnn.callbacks._reporting import log_figure, report_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHARDING = ("FSDP", "DeepSpeed", "ModelParallel")


class EffnnCallback(Callback):
    """A callback that logs under a prefix, and leaves nothing behind where a fit ends or fails.

    Args:
        prefix: first part of the logged keys; callbacks of one class with different ones have states of their own.
    """

    takes_shards: ClassVar[bool] = False
    """Whether it works where a process holds a part of each weight only."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._said: set[str] = set()

    @property
    def name(self) -> str:
        """Who speaks: the class."""
        return type(self).__name__

    @property
    def state_key(self) -> str:
        """Fixed by the prefix."""
        return f"{self.name}[{self.prefix}]"

    # from the beginning of a fit to its end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin a run: refuse shards of weights, forget what was said in an earlier one.

        Raises:
            MisconfigurationException: names the callback, the strategy and what would do.
        """
        self._said.clear()
        strategy = type(trainer.strategy).__name__
        if stage == "fit" and not self.takes_shards and any(word in strategy for word in _SHARDING):
            raise MisconfigurationException(
                f"{self.name} needs whole weights, and {strategy} shards them: use DDP or one device"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the callback's name and arguments as hyperparameters of the run, under its prefix."""
        if not trainer.is_global_zero:
            return
        known = [name for name in inspect.signature(type(self).__init__).parameters if name in vars(self)]
        parameters = {"callback": self.name} | {name: _plain(getattr(self, name)) for name in known}
        for logger in trainer.loggers:
            logger.log_hyperparams({self.prefix: parameters})

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of what is not the callback's."""
        if stage == "fit":
            self._let_go()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of it: after an exception or Ctrl-C there is no teardown."""
        self._let_go()

    def _let_go(self) -> None:
        """Take off what is on the module, on others' callbacks or on optimisers; twice is no error."""

    # what a fit has to have

    def _needs_automatic_optimization(self, pl_module: LightningModule, why: str) -> None:
        if not pl_module.automatic_optimization:
            raise MisconfigurationException(f"{self.name} {why}: it needs automatic_optimization")

    def _needs_validation(self, trainer: Trainer, why: str) -> None:
        if not trainer.enable_validation:
            raise MisconfigurationException(f"{self.name} needs validation data: {why}; give the fit a loader of it")

    # what is told

    def _log(self, pl_module: LightningModule, figures: Mapping[str, float | Tensor], batch_size: int = 1) -> None:
        """Log means over the epoch and all processes, under the prefix."""
        for name, value in figures.items():
            pl_module.log(
                f"{self.prefix}/{name}", value, on_step=False, on_epoch=True, batch_size=batch_size, sync_dist=True
            )

    def _log_figure(
        self, trainer: Trainer, key: str, draw: Callable[[], Figure], folder: str | Path | None = None
    ) -> None:
        """Draw a figure for the loggers and the folder that are there; say why where there is none."""
        if not trainer.is_global_zero:
            return
        try:
            figure = draw()
        except (ImportError, ValueError) as error:  # without matplotlib, or nothing to draw
            self._say(f"no figure: {error}")
            return
        log_figure(trainer, f"{self.prefix}/{key}", figure, report_folder(trainer, folder))

    def _say(self, text: str) -> None:
        rank_zero_info(f"{self.name}: {text}")

    def _warn(self, text: str) -> None:
        rank_zero_warn(f"{self.name}: {text}", stacklevel=5)

    def _warn_once(self, about: str, text: str) -> None:
        """Warn once a run about one thing."""
        if about not in self._said:
            self._said.add(about)
            self._warn(text)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All callbacks in a Trainer, whose type does not tell of them."""
    return list(vars(trainer)["callbacks"])


def _plain(value: object) -> object:
    """What every logger can write down."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, Path) else str(getattr(value, "name", value))
