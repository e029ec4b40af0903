"""What sequences cost by their number of tokens, and what cost of natural ones next to none exceeds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn import hardware
from lightning_effnn.robustness.activations import as_deployed


class SequenceEnergy:
    """Simulated energy and latency of one sequence by its number of tokens, traced once a length.

    For networks whose cost depends on length alone, as that of transformers with GELU; elsewhere it is that of one
    token repeated.

    Args:
        model: takes token ids ``[1, T]``, int64.
        accelerator: a preset's name, a YAML file or an ``Accelerator``.
        token: the id that the traced sequences are made of.

    Raises:
        ValueError: an unknown accelerator.

    >>> model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2))
    >>> energy = SequenceEnergy(model, "eyeriss_like")
    >>> one, many = energy([1, 50])
    >>> bool(many > one), energy.latency_us([1, 50]).shape
    (True, torch.Size([2]))
    """

    def __init__(
        self, model: nn.Module, accelerator: str | Path | hardware.Accelerator = "eyeriss_like", token: int = 1
    ) -> None:
        self.model, self.token = model, token
        self.chip = hardware.Accelerator.load(accelerator)
        self._reports: dict[int, hardware.CostReport] = {}

    def __call__(self, lengths: Iterable[int]) -> Tensor:
        """Return the energy of each length in uJ: ``[N]``.

        Args:
            lengths: tokens of each sequence, at least 1.
        """
        return torch.tensor([self.report(length).energy_uJ for length in map(int, lengths)], device="cpu")

    def latency_us(self, lengths: Iterable[int]) -> Tensor:
        """Return the latency of each length in us: ``[N]``.

        Args:
            lengths: tokens of each sequence, at least 1.
        """
        return torch.tensor([self.report(length).latency_us for length in map(int, lengths)], device="cpu")

    def report(self, length: int) -> hardware.CostReport:
        """Return the whole report of a sequence of so many tokens.

        Raises:
            ValueError: a length below 1.
        """
        if length < 1:
            raise ValueError(f"a sequence has {length} tokens: at least 1 is needed")
        if length not in self._reports:
            self._reports[length] = _report(self.model, self.chip, _tokens(self.model, length, self.token))
        return self._reports[length]


class GenerationEnergy:
    """Simulated energy and latency of reading an input and then writing an output token by token.

    Writing a token is traced once a length of the input: for decoders whose steps all cost the same, as those of
    recurrent networks do.

    Args:
        encoder: from token ids ``[1, T]`` to a memory, whatever the decoder takes.
        decoder: from the latest tokens ``[1, 1]``, the memory and its own state (None at first) to scores and its next
            state.
        accelerator: as for :class:`SequenceEnergy`.
        token: the id that traced inputs are made of.

    >>> from lightning_effnn.modules import SequenceToSequence
    >>> model = SequenceToSequence(tokens_in=14, tokens_out=35, hidden_channels=8)
    >>> energy = GenerationEnergy(model.encoder, model.decoder)
    >>> few, many = energy(lengths=[6, 6], steps=[5, 200])
    >>> bool(many > 10 * few)
    True
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        accelerator: str | Path | hardware.Accelerator = "eyeriss_like",
        token: int = 1,
    ) -> None:
        self.decoder = decoder
        self.reading = SequenceEnergy(encoder, accelerator, token)
        self._writing: dict[int, hardware.CostReport] = {}

    def __call__(self, lengths: Iterable[int], steps: Iterable[int]) -> Tensor:
        """Return the energy of each input in uJ: ``[N]``.

        Args:
            lengths: tokens of each input.
            steps: tokens written for each.
        """
        reports = [(self.reading.report(n), m, self.writing(n)) for n, m in _pairs(lengths, steps)]
        return torch.tensor(
            [reading.energy_uJ + m * writing.energy_uJ for reading, m, writing in reports], device="cpu"
        )

    def latency_us(self, lengths: Iterable[int], steps: Iterable[int]) -> Tensor:
        """Return the latency of each input in us: ``[N]``.

        Args:
            lengths: tokens of each input.
            steps: tokens written for each.
        """
        reports = [(self.reading.report(n), m, self.writing(n)) for n, m in _pairs(lengths, steps)]
        return torch.tensor(
            [reading.latency_us + m * writing.latency_us for reading, m, writing in reports], device="cpu"
        )

    def writing(self, length: int) -> hardware.CostReport:
        """Return the report of writing one token after an input of so many."""
        if length not in self._writing:
            encoder, token = self.reading.model, self.reading.token
            latest = _tokens(self.decoder, 1, token)
            with torch.no_grad(), as_deployed(encoder), as_deployed(self.decoder):
                memory = encoder(_tokens(encoder, length, token))
                state = self.decoder(latest, memory, None)[1]
            self._writing[length] = _report(self.decoder, self.reading.chip, latest, memory, state)
        return self._writing[length]


class WallTime:
    """Seconds that a callable takes for each input by itself, the least of a few tries: a fitness without a model.

    Work that it leaves to an accelerator is waited for.

    Args:
        call: of one input.
        repeats: tries.

    Raises:
        ValueError: repeats below 1. What ``call`` raises is its own.

    >>> WallTime(sum)([[1, 2], [3]]).shape
    torch.Size([2])
    """

    def __init__(self, call: Callable[[Any], object], repeats: int = 3) -> None:
        if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 1:
            raise ValueError(f"repeats is {repeats!r}: use a whole number of at least 1")
        self.call, self.repeats = call, repeats

    def __call__(self, inputs: Iterable[object]) -> Tensor:
        """Return the seconds of each input: ``[N]``.

        Args:
            inputs: strings, or a batch ``[B, ...]``, of which each row is an input.
        """
        rows = [row[None] for row in inputs] if isinstance(inputs, Tensor) else list(inputs)
        seconds = [min(self._once(row) for _ in range(self.repeats)) for row in rows]
        return torch.tensor(seconds, dtype=torch.float64, device="cpu")

    def _once(self, one: object) -> float:
        _wait()
        begin = time.perf_counter()
        self.call(one)
        _wait()
        return time.perf_counter() - begin


def _wait() -> None:
    """Until an accelerator has done what it was given: it says that a call is over before it has begun."""
    accelerator = getattr(torch, "accelerator", torch.cuda)  # the former since torch 2.6
    if accelerator.is_available():
        accelerator.synchronize()


def tolerance_limit(values: Tensor, share: float, confidence: float = 0.95) -> float | None:
    """Return the least of the values that, with this confidence, at most a share of all natural ones exceeds.

    Distribution-free: of ``n`` values, how many lie above the true quantile is binomial.

    Args:
        values: of natural inputs drawn at random, ``[n]``.
        share: of natural inputs that may exceed it, in (0, 1).
        confidence: in (0, 1).

    Returns:
        One of the values; None if there are too few: :func:`samples_needed` tells how many it takes.

    Source: Wilks (1941), "Determination of sample sizes for setting tolerance limits".

    >>> tolerance_limit(torch.arange(1000.0), share=0.01)
    995.0
    >>> tolerance_limit(torch.arange(100.0), share=0.01) is None
    True
    """
    count = len(values)
    log_term = count * math.log1p(-share)  # of the chance that none lies above the quantile
    below, above = math.exp(log_term), -1
    while below <= 1 - confidence:  # above + 2 or more lie there with the confidence
        above += 1
        log_term += math.log((count - above) / (above + 1) * share / (1 - share))
        below += math.exp(log_term)
    if above < 0:
        return None
    return float(values.double().sort(descending=True).values[above])


def samples_needed(share: float, confidence: float = 0.95) -> int:
    """Return how many natural inputs it takes to tell what at most a share of them exceeds.

    >>> samples_needed(0.001)
    2995
    """
    return math.ceil(math.log(1 - confidence) / math.log1p(-share))


def _tokens(model: nn.Module, length: int, token: int) -> Tensor:
    """One token repeated, where the model is: ``[1, length]``."""
    parameter = next(model.parameters(), None)
    return torch.full((1, length), token, device="cpu" if parameter is None else parameter.device)


def _pairs(lengths: Iterable[int], steps: Iterable[int]) -> list[tuple[int, int]]:
    return list(zip(map(int, lengths), map(int, steps), strict=True))


def _report(model: nn.Module, chip: hardware.Accelerator, *inputs: Any) -> hardware.CostReport:
    with as_deployed(model):
        return hardware.estimate(hardware.trace(model, *inputs), chip)
