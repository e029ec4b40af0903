"""One tensor that is rounded to one of several numbers of bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_effnn._threads import PerThread
from lightning_effnn.formats import NumberFormat
from lightning_effnn.formats.tagging import simulated, tag
from lightning_effnn.quantization import TensorQuantizer


@dataclass
class Trial:
    """An option that a thread tries.

    Attributes:
        active: its number.
        mark: a format to declare in place of the option's own, for a trace to tell tensors apart by.
        seen: of the latest tensor while there is a mark, its number of elements and the relative squared error.
    """

    active: int
    mark: NumberFormat | None = None
    seen: tuple[int, float] = (0, 0.0)


@contextmanager
def trying(trials: Mapping[BitChoice, Trial]) -> Iterator[None]:
    """Let choices run trials in this thread."""
    before = {choice: choice.trial.value for choice in trials}
    try:
        for choice, trial in trials.items():
            choice.trial.value = trial
        yield
    finally:
        for choice, trial_before in before.items():
            choice.trial.value = trial_before


class BitChoice(nn.Module):
    """Quantisers of one tensor, of which one runs at a time; each remembers its own scale.

    Scales are observed, and only while :attr:`observing`: measuring one takes longer than the rounding itself.

    Args:
        bits: of each option, 1 to 16; or 32 for the tensor as it is.
        weight: whether it is a weight, whose scale follows it at once, or an activation, whose scale is a running mean
            over batches.

    Attributes:
        active: number of the option that runs.
        observing: whether the scale of the active option learns, in train mode; one without a scale always does.
        trial: what runs in this thread in place of that, for a while; other threads don't see it.

    >>> import torch
    >>> choice = BitChoice((2, 8), weight=True)
    >>> choice.active = 0
    >>> choice(torch.tensor([-1.0, 0.2, 0.9]))
    tensor([-0.9000,  0.0000,  0.9000])
    """

    def __init__(self, bits: Sequence[int], weight: bool) -> None:
        super().__init__()
        self.bits = tuple(bits)
        self.options = nn.ModuleList(
            TensorQuantizer(number, signed=True if weight else None, momentum=1.0 if weight else 0.1) for number in bits
        )
        self.active = len(self.bits) - 1
        self.observing = True
        self.trial: PerThread[Trial] = PerThread()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` in the levels of the active option, or of this thread's trial."""
        trial = self.trial.value
        option = self.options[self.active if trial is None else trial.active]
        assert isinstance(option, TensorQuantizer)
        learns = self.training and ((trial is None and self.observing) or not option.ready())
        if option.training != learns:  # to set an attribute of a module takes long
            option.training = learns
        if trial is None or trial.mark is None:
            levels: Tensor = option(x)
            return levels
        with simulated():
            # a copy, for the mark is that of a memory, which 32 bits would share with other readers
            levels = option(x).clone()
            error = (levels - x).float().square().sum() / x.float().square().sum().clamp(min=1e-30)
            trial.seen = (trial.seen[0] + x.numel(), float(error))
        return tag(levels, trial.mark)
