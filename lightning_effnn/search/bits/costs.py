"""What a model costs with each choice of bits: tables made from a few traces of one batch.

In a trace each tensor with a choice has a mark for a format, by which every operation tells whose bits its factors and
its result have. It is traced once with each option's number (all first options, all second ones, ...), which gives the
shares of zeros. So each operation's cost is a table over at most three choices, and the sum of these tables is exact
where zeros of one tensor don't depend on the bits of others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_effnn import hardware
from lightning_effnn.formats import FP32, Binary, FixedPoint, NumberFormat
from lightning_effnn.hardware.engines import check_prices_operations
from lightning_effnn.search.bits.choice import BitChoice, Trial, trying
from lightning_effnn.search.cost import CostModel, CostTerm

COSTS = ("energy", "bits", "bops")
_OPERANDS = ("w", "i", "o")
_Traced = list[hardware.Operation]


class Survey:
    """A few traced runs of a model whose tensors have choices.

    Args:
        model: the model.
        choices: by name.
        run: runs the model once on a batch, in eval mode, without gradients.
        example: all of that batch; if ``None``, it is what the first module called gets.

    Attributes:
        traces: the operations of each run, those of losses and metrics left out.
        finest: those of one more run, with the most bits everywhere.
        elements: of each choice, how many elements its tensor has in a run.
        errors: of each choice, the relative squared error of each option.
    """

    def __init__(
        self, model: nn.Module, choices: Mapping[str, BitChoice], run: Callable[[], object], example: Any = None
    ) -> None:
        self.choices, self.example = choices, example
        # A scale tells formats apart and is otherwise of no consequence to a cost.
        self._marks: dict[str, NumberFormat] = {
            name: FixedPoint(8, scale=1.0 + (n + 1) / 2**20) for n, name in enumerate(choices)
        }
        self._names = {mark: name for name, mark in self._marks.items()}
        self.traces: list[_Traced] = []
        self.elements: dict[str, int] = {}
        self.errors = {name: torch.zeros(len(choice.bits), device="cpu") for name, choice in choices.items()}
        most = max(len(choice.bits) for choice in choices.values())
        for number in range(most):
            last = {name: len(choice.bits) - 1 for name, choice in choices.items()}
            self.traces.append(self._traced(model, run, {name: min(number, n) for name, n in last.items()}))
        finest = {name: choice.bits.index(max(choice.bits)) for name, choice in choices.items()}
        self.finest = self._traced(model, run, finest)
        self._model = type(model).__name__

    def _traced(self, model: nn.Module, run: Callable[[], object], picks: Mapping[str, int]) -> _Traced:
        trials = {name: Trial(picks[name], self._marks[name]) for name in self.choices}
        tracer = hardware.Tracer(model, example=self.example)
        with trying({self.choices[name]: trial for name, trial in trials.items()}), tracer:
            run()
        for name, trial in trials.items():
            self.elements[name], self.errors[name][trial.active] = trial.seen
        return [op for op in tracer.trace.operations if op.phase != "loss"]

    def check_operations(self) -> None:
        """Refuse a model that did different things in two runs: tables need each operation with each option.

        Raises:
            ValueError: it did.
        """
        if len({tuple((op.name, op.op, op.extents) for op in traced) for traced in (*self.traces, self.finest)}) != 1:
            raise ValueError(
                f"{self._model} ran other operations with other bits: what they cost can't be put into tables; use"
                " cost='bits'"
            )

    def places(self, operation: hardware.Operation) -> dict[str, str]:
        """Names of the choices of an operation's factors and of its result, by ``"w"``, ``"i"``, ``"o"``."""
        found = {operand: self._names.get(getattr(operation, f"{operand}_format")) for operand in _OPERANDS}
        return {operand: name for operand, name in found.items() if name is not None}


def bit_cost(survey: Survey, kind: str, accelerator: str | Path | hardware.Accelerator = "eyeriss_like") -> CostModel:
    """Return the expected cost as a function of the choices' probabilities, relative to that of the model in fp32.

    Args:
        survey: of the model.
        kind: ``"energy"`` in pJ; ``"bits"`` of weights and of layers' inputs, two groups; ``"bops"``, multiplications
            times the bits of both factors (Baskin et al., 2021, "UNIQ", arXiv 1804.10969, section 4).
        accelerator: for energy: a preset's name, a YAML file or an ``Accelerator``.

    Raises:
        ValueError: an unknown kind or accelerator, or one that prices modules, not operations; or a model that did
            different things in two runs, of which only ``"bits"`` can be told.
    """
    if kind == "bits":
        return CostModel(*_bits(survey))
    if kind in COSTS:
        survey.check_operations()
    if kind == "bops":
        return CostModel(*_bops(survey))
    if kind == "energy":
        return CostModel(*_energy(survey, hardware.Accelerator.load(accelerator)))
    raise ValueError(f"cost is {kind!r}: use one of {', '.join(COSTS)}")


_Model = tuple[list[CostTerm], str, dict[str, float]]


def _bits(survey: Survey) -> _Model:
    terms, references = [], dict.fromkeys((name.split("/")[0] for name in survey.choices), 0.0)
    for name, choice in survey.choices.items():
        group = name.split("/")[0]
        table = survey.elements[name] * torch.tensor(choice.bits, dtype=torch.float64, device="cpu")
        terms.append(CostTerm(name, (name,), table, group))
        references[group] += 32 * survey.elements[name]
    return terms, "bit", references


def _bops(survey: Survey) -> _Model:
    terms, reference = [], 0.0
    for number, op in enumerate(survey.finest):
        if not op.is_mac:
            continue
        places = {operand: name for operand, name in survey.places(op).items() if operand != "o"}
        table = op.macs * 32 ** (2 - len(places)) * _products(survey, places)
        terms.append(CostTerm(f"{number} {op.name}", _axes(places), table))
        reference += 32 * 32 * op.macs
    return terms, "bit operation", {"": reference}


def _energy(survey: Survey, chip: hardware.Accelerator) -> _Model:
    check_prices_operations(chip)
    # as estimated: what is fused to an operation is in the format of its result
    *traces, finest = [
        [layer.operation for layer in hardware.estimate(hardware.Trace(operations=tuple(traced)), chip).layers]
        for traced in (*survey.traces, survey.finest)
    ]
    variants: list[tuple[int, tuple[int, ...], hardware.Operation]] = []
    for number, op in enumerate(finest):
        places = survey.places(op)
        sizes = [range(len(survey.choices[name].bits)) for name in _axes(places)]
        for picks in itertools.product(*sizes):
            chosen = dict(zip(_axes(places), picks, strict=True))
            fields: dict[str, Any] = {}
            for operand, name in places.items():
                pick = chosen[name]
                fields[f"{operand}_format"] = _format(survey.choices[name].bits[pick], operand)
                fields[f"{operand}_density"] = getattr(traces[pick][number], f"{operand}_density")
            variants.append((number, picks, replace(op, **fields)))
    in_full = [_in_full(survey, op) for op in finest]
    priced = _priced([*(op for _, _, op in variants), *in_full], chip)
    tables: dict[int, dict[tuple[int, ...], float]] = {}
    for number, picks, op in variants:
        tables.setdefault(number, {})[picks] = priced[op]
    terms = []
    for number, values in tables.items():
        axes = _axes(survey.places(finest[number]))
        shape = [len(survey.choices[name].bits) for name in axes]
        table = torch.tensor(list(values.values()), dtype=torch.float64, device="cpu").reshape(shape)
        terms.append(CostTerm(f"{number} {finest[number].name}", axes, table))
    return terms, "pJ", {"": sum(priced[op] for op in in_full)}


def _in_full(survey: Survey, operation: hardware.Operation) -> hardware.Operation:
    formats: dict[str, Any] = {f"{operand}_format": FP32 for operand in survey.places(operation)}
    return replace(operation, **formats)


def _priced(operations: Sequence[hardware.Operation], chip: hardware.Accelerator) -> dict[hardware.Operation, float]:
    # a fused operation changes what the one before it stores, which is priced already: alone it writes nothing
    alone = {
        op: replace(op, fused=False, elements_out=0) if op.fused and not op.is_mac else op
        for op in dict.fromkeys(operations)
    }
    distinct = tuple(dict.fromkeys(alone.values()))
    layers = hardware.estimate(hardware.Trace(operations=distinct), chip).layers
    energy = {op: float(layer.cost.energy_pJ) * op.repeats for op, layer in zip(distinct, layers, strict=True)}
    return {op: energy[priced] for op, priced in alone.items()}


def _products(survey: Survey, places: Mapping[str, str]) -> Tensor:
    """The bits of all factors multiplied, for each combination of options."""
    axes = _axes(places)
    options = [survey.choices[name].bits for name in axes]
    values = []
    for picks in itertools.product(*options):
        chosen = dict(zip(axes, picks, strict=True))
        values.append(math.prod(chosen[name] for name in places.values()))
    return torch.tensor(values, dtype=torch.float64, device="cpu").reshape([len(bits) for bits in options])


def _axes(places: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(places.values()))


def _format(bits: int, operand: str) -> NumberFormat:
    if bits == 32:
        return FP32
    return Binary() if bits == 1 and operand == "w" else FixedPoint(bits)
