"""The search: quantisers with a choice on a model, a controller that learns from tries, and the plan in the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn.hardware import Accelerator
from lightning_effnn.quantization import (
    Attachment,
    QuantizationPlan,
    TensorQuantizer,
    activation_sites,
    attach_,
    strip_,
    weight_sites,
)
from lightning_effnn.search.bits.choice import BitChoice, Trial, trying
from lightning_effnn.search.bits.costs import Survey, bit_cost
from lightning_effnn.search.bits.sensitivity import Sensitivity
from lightning_effnn.search.bits.state import check_state
from lightning_effnn.search.controller import Controller
from lightning_effnn.search.cost import CostModel, CostTerm

TRIES = 4
"""Draws that are compared on one batch."""
_TRAVEL = 6.0
"""How far the logits of a choice can move in a search: far enough to decide, whatever the number of steps."""
_LEARNING_RATES = (0.01, 0.5)
_MEMORY = 30
"""Tries remembered, for each choice."""


class BitSearch:
    """Each weight and each layer's input of a model in one of several numbers of bits, learned while it trains.

    For each step of training a draw of the controller decides about all bits (:meth:`sample_`). Now and then a few
    draws are compared on one batch that isn't trained on (:meth:`compare`): from their losses it learns how much the
    error of rounding each tensor matters (:class:`~lightning_effnn.search.bits.sensitivity.Sensitivity`), and the
    controller's logits take a step down the loss and the cost to be expected (:meth:`step`). In the end :meth:`settle_`
    leaves plain quantisers, with learned scales, of the most probable bits.

    Nothing is added to the model: its ``state_dict``, parameters and modules are what they were.

    Args:
        model: any module, initialised.
        weights: bits to choose from for each weight, 1 to 16 or 32; an empty list leaves weights alone.
        activations: likewise, for what goes into each layer with weights.
        include, exclude: patterns, see :func:`~lightning_effnn.quantization.weight_sites`.
        steps: how often :meth:`step` will be called, about; sets how fast the controller learns.
        seed: of the draws.

    Attributes:
        plan: the result, once settled.
        cost: expected cost, once :meth:`survey` was called.

    Raises:
        TypeError: bits that are no integers.
        ValueError: bits out of range, twice or none at all; nothing to choose; no weight in the model; quantisers on it
            already.

    Source: gates and controllers as in Zhao et al. (2020), arXiv 2009.09232; learning them from compared draws is this
    package's own (see the method card).

    >>> x = torch.randn(64, 8)
    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> search = BitSearch(model, weights=(2, 8), activations=(8,))
    >>> search.survey(lambda: model(x), cost="bits")
    >>> for _ in range(20):
    ...     _ = search.compare(lambda: model(x).square().mean().item())
    ...     search.step(cost_weight=10.0)
    >>> search.settle_().weights
    {'0.weight': 2, '2.weight': 2}
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[int] = (2, 4, 6, 8),
        activations: Sequence[int] = (4, 8),
        include: Sequence[str] | None = None,
        exclude: Sequence[str] | None = None,
        steps: int = 100,
        seed: int = 0,
    ) -> None:
        check_options(weights, activations)
        self.model = model
        sites = {site.name: tuple(weights) for site in weight_sites(model, include, exclude)} if weights else {}
        inputs = {s.name: tuple(activations) for s in activation_sites(model, include, exclude)} if activations else {}
        if not sites and not inputs:
            raise ValueError(f"{type(model).__name__} has no input of a layer to choose bits for")
        self.options = {f"weights/{name}": bits for name, bits in sites.items()}
        self.options |= {f"activations/{name}": bits for name, bits in inputs.items()}
        self.attachment: Attachment | None = attach_(
            model,
            {name: BitChoice(bits, weight=True) for name, bits in sites.items()},
            {name: BitChoice(bits, weight=False) for name, bits in inputs.items()},
        )
        self.controller = Controller(self.options, seed=seed)
        slowest, fastest = _LEARNING_RATES
        lr = min(max(_TRAVEL / max(steps, 1), slowest), fastest)
        self.optimizer = torch.optim.Adam(self.controller.parameters(), lr=lr, betas=(0.5, 0.999))
        unknown = {name: torch.zeros(len(bits), device="cpu") for name, bits in self.options.items()}
        self.sensitivity = self._untried(unknown)
        self.cost: CostModel | None = None
        self.plan: QuantizationPlan | None = None
        self._elements = dict.fromkeys(self.options, 0)

    @property
    def choices(self) -> dict[str, BitChoice]:
        """The quantisers, by name of the choice; empty once settled."""
        if self.attachment is None:
            return {}
        found = {f"weights/{name}": choice for name, choice in self.attachment.weights.items()}
        found |= {f"activations/{name}": choice for name, choice in self.attachment.activations.items()}
        return {name: choice for name, choice in found.items() if isinstance(choice, BitChoice)}

    @property
    def quantizers(self) -> nn.Module:
        """All that is attached, for ``state_dict`` and optimisers; a module without any if everything stays fp32."""
        return nn.ModuleDict() if self.attachment is None else self.attachment.quantizers

    def survey(
        self,
        run: Callable[[], object],
        cost: str = "energy",
        accelerator: str | Path | Accelerator = "eyeriss_like",
        example: Any = None,
    ) -> None:
        """See what the model does with each option, before the first comparison.

        Args:
            run: runs the model on a batch, in eval mode.
            cost, accelerator: what to save, see :func:`~lightning_effnn.search.bits.bit_cost`.
            example: the whole batch, where the first module called gets a part of it only, such as one of two views.

        Raises:
            ValueError: as there.
        """
        assert self.attachment is not None
        with torch.no_grad(), self.attachment.calibrating():  # scales start from this batch
            survey = Survey(self.model, self.choices, run, example)
        self.cost = bit_cost(survey, cost, accelerator)
        self._elements = dict(survey.elements)
        self.sensitivity = self._untried(survey.errors)

    def sample_(self, observing: bool = False) -> None:
        """Draw the bits with which the model runs next.

        Args:
            observing: whether scales learn from what runs next, in train mode.
        """
        self._open(self.controller.draw(), observing)

    def ahead_(self) -> None:
        """Let the model run with the most probable bits."""
        self._open({n: self.options[n].index(bits) for n, bits in self.controller.chosen().items()}, observing=False)

    def compare(self, evaluate: Callable[[], float]) -> bool:
        """Learn from a few draws on one batch.

        Args:
            evaluate: returns the loss of the model as it is, on the same batch each time.

        Returns:
            Whether all losses were finite; if not, nothing was learned.
        """
        draws, losses = [], []
        for _ in range(TRIES):
            draws.append(self.controller.draw())
            with trying({choice: Trial(draws[-1][name]) for name, choice in self.choices.items()}):
                losses.append(evaluate())
        mean = sum(losses) / TRIES
        if not math.isfinite(mean):
            return False
        for draw, loss in zip(draws, losses, strict=True):
            # Against the mean of the batch, which says nothing of bits; that takes a share of 1 / TRIES off each
            # effect.
            self.sensitivity.observe(draw, (loss - mean) * TRIES / (TRIES - 1))
        return True

    def step(self, cost_weight: float) -> None:
        """Move the controller down ``expected loss + cost_weight * expected cost``.

        Args:
            cost_weight: of the cost relative to fp32 against the loss in its own unit.
        """
        assert self.cost is not None
        probabilities = self.controller.probabilities
        self.optimizer.zero_grad()
        total = self.sensitivity.expected(probabilities) + cost_weight * self.cost.relative(probabilities)
        torch.autograd.backward(total)
        self.optimizer.step()

    def settle_(self) -> QuantizationPlan:
        """End the search: plain quantisers with the most probable bits; scales go on from where they are."""
        if self.plan is None:
            chosen, choices = self.controller.chosen(), self.choices
            groups: dict[str, dict[str, int]] = {"weights": {}, "activations": {}}
            quantizers: dict[str, dict[str, nn.Module]] = {"weights": {}, "activations": {}}
            for name, bits in chosen.items():
                kind, site = name.split("/", 1)
                groups[kind][site] = bits
                if bits != 32:
                    quantizers[kind][site] = _settled(choices[name], bits)
            strip_(self.model)
            self.plan = QuantizationPlan(**groups)
            self.attachment = attach_(self.model, **quantizers) if any(quantizers.values()) else None
        return self.plan

    def figures(self) -> dict[str, float]:
        """Mean bits of a weight and of an activation, expected relative cost, and entropy (1 open, 0 decided)."""
        chosen = self.controller.chosen()
        result = {}
        for short, kind in (("bits_w", "weights/"), ("bits_a", "activations/")):
            elements = {name: n for name, n in self._elements.items() if name.startswith(kind)}
            if sum(elements.values()):
                result[short] = sum(chosen[name] * n for name, n in elements.items()) / sum(elements.values())
        with torch.no_grad():
            if self.cost is not None:
                gates = self.controller.gates_of(chosen)
                result["cost"] = float(self.cost.relative(gates))
            result["entropy"] = float(self.controller.entropy)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on: plain types and tensors."""
        cost = self.cost
        return {
            "controller": self.controller.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sensitivity": self.sensitivity.state_dict(),
            "errors": self.sensitivity.errors,
            "quantizers": self.quantizers.state_dict(),
            "elements": dict(self._elements),
            "cost": cost
            and {
                "terms": [(term.name, list(term.choices), term.table, term.group) for term in cost.terms],
                "unit": cost.unit,
                "references": cost.references,
            },
            "chosen": None if self.plan is None else self.controller.chosen(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, with a model that has the same weights.

        Args:
            state: what :meth:`state_dict` gave.

        Raises:
            ValueError: it is of another search, or has been changed; names the part, what it is and what is needed.
        """
        check_state(state, self.state_dict(), self.options)
        self.controller.load_state_dict(state["controller"])
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state["optimizer"]["state"]})
        self.optimizer.param_groups[0]["lr"] = state["optimizer"]["param_groups"][0]["lr"]
        self.sensitivity = self._untried(state["errors"])
        self.sensitivity.load_state_dict(state["sensitivity"])
        self._elements = dict(state["elements"])
        if state["cost"] is not None:
            terms = [CostTerm(name, tuple(read), table, group) for name, read, table, group in state["cost"]["terms"]]
            self.cost = CostModel(terms, state["cost"]["unit"], state["cost"]["references"])
        if state["chosen"] is not None:
            self.settle_()
        try:
            self.quantizers.load_state_dict(state["quantizers"])
        except RuntimeError as error:  # of another search, or the like
            raise ValueError(f"quantizers: {error}") from error

    def _open(self, picks: Mapping[str, int], observing: bool) -> None:
        for name, choice in self.choices.items():
            choice.active, choice.observing = picks[name], observing

    def _untried(self, errors: Mapping[str, Tensor]) -> Sensitivity:
        return Sensitivity(errors, memory=_MEMORY * len(errors) + 2)


def check_options(weights: Sequence[int], activations: Sequence[int]) -> None:
    """Refuse what are no lists of bits to choose from.

    Args:
        weights, activations: as given; a single number of bits is that for all.

    Raises:
        TypeError: bits that are no integers.
        ValueError: bits out of range, twice, or nothing to choose in both lists.
    """
    for argument, options in (("weights", weights), ("activations", activations)):
        if isinstance(options, str) or not isinstance(options, Sequence):
            raise TypeError(f"{argument} is {options!r}: use a list of bits")
        for bits in options:
            TensorQuantizer(bits)  # refuses it
        if len(set(options)) != len(options):
            raise ValueError(f"{argument} is {options!r}: use each number of bits once")
    if len(weights) < 2 and len(activations) < 2:
        raise ValueError(
            f"weights is {weights!r} and activations {activations!r}: there is nothing to choose; for the same bits"
            " everywhere use quantization.quantize_"
        )


def _settled(choice: BitChoice, bits: int) -> TensorQuantizer:
    """A quantiser with a learned scale that starts where the option's scale is."""
    observed = choice.options[choice.bits.index(bits)]
    assert isinstance(observed, TensorQuantizer)
    quantizer = TensorQuantizer(bits, scale="learned", signed=observed.given_sign)
    quantizer.load_state_dict(observed.state_dict())
    return quantizer
