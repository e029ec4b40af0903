"""From a problem and a field to residuals at points, and how they change with the parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_effnn.pde.builtin import BuiltIn
from lightning_effnn.pde.derivatives import Derivatives
from lightning_effnn.pde.field import Field
from lightning_effnn.pde.jacobian import check, rows
from lightning_effnn.pde.jets import Entry, Jet, Tape, multiply
from lightning_effnn.pde.names import Coordinates, FieldView
from lightning_effnn.pde.problem import Problem, Term


class Unknowns(nn.Module):
    """Coefficients that are looked for, as parameters; those that start above 0 are kept there by an exponential.

    >>> Unknowns({"nu": 0.5, "k": -1.0}).values()
    {'nu': 0.5, 'k': -1.0}
    """

    def __init__(self, start: dict[str, float]) -> None:
        super().__init__()
        self.positive = {name for name, value in start.items() if value > 0}
        self.raw = nn.ParameterDict()
        for name, value in start.items():
            raw = math.log(value) if value > 0 else value
            self.raw[name] = nn.Parameter(torch.tensor([raw], dtype=torch.float64))

    def columns(self, count: int, tape: Tape | None = None) -> dict[str, Tensor]:
        """Return each as ``[count]``."""
        out = {}
        for name, raw in self.raw.items():
            copies = raw.expand(count)
            if tape is not None:
                copies = copies.clone()
                tape.entries.append(Entry("own", (raw,), copies))
            out[name] = copies.exp() if name in self.positive else copies
        return out

    def values(self) -> dict[str, float]:
        """Return what they are now."""
        return {name: round(float(column.detach()[0]), 12) for name, column in self.columns(1).items()}


@dataclass
class Block:
    """A term at chosen points, with all that doesn't depend on parameters worked out."""

    term: Term
    points: Tensor
    normals: Tensor
    features: Jet | None
    given: Tensor | None
    vanishing: Tensor | None
    emphasis: Tensor | None = None
    """Weight of each point, ``[N]``; equal if None."""


class Part(NamedTuple):
    """One equation at a block's points: its weight in the loss, and residuals ``[N]``."""

    block: Block
    weight: float
    residual: Tensor


class Residuals:
    """Residuals of a field at points, as one vector, with its Jacobian.

    The loss is the sum over equations of ``weight`` times the mean square; entries of the vector are scaled so that
    their sum of squares is that loss.

    Args:
        problem: the equation and its conditions.
        field: a module from ``[N, d]`` to ``[N, fields]``.
        unknowns: of the problem.
        exact: conditions that are built in, or None; the others become residuals.

    Raises:
        ValueError: the field lacks a derivative that the equation asks for.
    """

    def __init__(
        self, problem: Problem, field: nn.Module, unknowns: Unknowns | None = None, exact: BuiltIn | None = None
    ) -> None:
        self.problem, self.field, self.exact = problem, field, exact
        self.unknowns = Unknowns(problem.unknowns) if unknowns is None else unknowns
        built_in = exact.taken if exact is not None else []
        self.terms = tuple(t for t in problem.terms if not any(t.condition is c for c in built_in))
        smoothness = getattr(field, "smoothness", None)
        if smoothness is not None and smoothness < problem.order:
            raise ValueError(
                f"the equation has derivatives of order {problem.order}, the field has useful ones up to "
                f"{smoothness:g}: use another activation or encoding"
            )
        if self.like.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the field computes in {self.like.dtype}: use float64, or float32")
        self.derivatives = Derivatives(field)
        self.blocks: list[Block] = []
        self.weights: dict[str, list[float]] = {t.name: [1.0] * t.equations for t in self.terms}
        self._checked = False

    @property
    def parameters(self) -> list[Tensor]:
        """What is trained, in the order of the Jacobian's columns."""
        both: Sequence[nn.Module] = (self.field, self.unknowns)
        return [p for module in both for p in module.parameters() if p.requires_grad]

    @property
    def like(self) -> Tensor:
        """A tensor of the field's type, on its device."""
        return next(iter(self.field.parameters())).detach()

    def block(self, term: Term, points: Tensor, normals: Tensor) -> Block:
        """Work out what does not depend on parameters."""
        given = vanishing = features = None
        if self.exact is not None:
            given, vanishing = self.exact.jets(points, term.indices)
        if isinstance(self.field, Field) and not any(p.requires_grad for p in self._encoding_parameters()):
            with torch.no_grad():
                features = self._features(points, term)
        return Block(term, points, normals, features, given, vanishing)

    def _encoding_parameters(self) -> list[nn.Parameter]:
        encoding = self.field.encoding
        return list(encoding.parameters()) if isinstance(encoding, nn.Module) else []

    def _features(self, points: Tensor, term: Term, tape: Tape | None = None) -> Jet:
        assert isinstance(self.field, Field)
        out: Any = self.field.features(Jet.of_points(points, term.indices, tape))  # type: ignore[arg-type]
        assert isinstance(out, Jet)
        return out

    def columns(self, block: Block, tape: Tape | None = None) -> Coordinates:
        """Return a block's coordinates and the unknowns by name."""
        unknowns = self.unknowns.columns(len(block.points), tape)
        return Coordinates(self.problem.columns(block.points) | unknowns)

    def fields(self, block: Block, tape: Tape | None = None) -> Tensor:
        """Return the fields' derivatives ``[K, N, fields]`` at a block's points."""
        term = block.term
        if isinstance(self.field, Field):
            features = block.features or self._features(block.points, term, tape)
            out: Any = self.field.layers(Jet(features.parts, term.indices, tape))
            parts: Tensor = out.parts
        else:
            parts = self.derivatives(block.points, term.indices, tape)
        if block.given is None or block.vanishing is None:
            return parts
        product = multiply(Jet(parts, term.indices), Jet(block.vanishing, term.indices))
        return block.given + product.parts

    def at(self, block: Block, tape: Tape | None = None) -> list[Tensor]:
        """Return a block's residuals, one ``[N]`` an equation."""
        parts, term = self.fields(block, tape), block.term
        where = term.indices.position
        names = self.problem.domain.names

        def view(k: int) -> FieldView:
            return FieldView(self.problem.fields[k], names, lambda derivative: parts[where[derivative], :, k])

        views = [view(k) for k in range(len(self.problem.fields))]
        return self.problem.equations(term, views, self.columns(block, tape), block.points, block.normals)

    def parts(self) -> list[Part]:
        """Return every equation's residuals at the points of its block."""
        return [
            Part(block, weight, residual)
            for block in self.blocks
            for weight, residual in zip(self.weights[block.term.name], self.at(block), strict=True)
        ]

    def vector(self, parts: Sequence[Part]) -> Tensor:
        """Return them as one vector ``[R]``, scaled."""
        return torch.cat([part.residual * self._factor(*part) for part in parts])

    def __call__(self) -> Tensor:
        """Return the vector ``[R]`` with its graph."""
        return self.vector(self.parts())

    @staticmethod
    def _factor(block: Block, weight: float, residual: Tensor) -> float | Tensor:
        plain = float((weight / len(residual)) ** 0.5)
        return plain if block.emphasis is None else plain * block.emphasis.sqrt()

    def jacobian(self) -> tuple[Tensor, Tensor]:
        """Return the vector ``[R]`` and its Jacobian ``[R, P]``.

        Raises:
            NotCovered: per-row gradients don't see all that parameters do.
        """
        parameters = self.parameters
        count = sum(p.numel() for p in parameters)
        vectors, matrices = [], []
        for block in self.blocks:
            tape = Tape()
            residuals = self.at(block, tape)
            for weight, residual in zip(self.weights[block.term.name], residuals, strict=True):
                scaled = residual * self._factor(block, weight, residual)
                out = residual.new_zeros(len(block.points), count)
                rows(scaled, tape, parameters, out)
                n = len(residual)
                if len(out) != n:  # pairs of points
                    out = out[:n] + out[n:]
                if not self._checked:
                    check(out, scaled, parameters)
                vectors.append(scaled.detach())
                matrices.append(out)
        self._checked = True
        if len(matrices) == 1:  # no need for a copy of megabytes
            return vectors[0], matrices[0]
        return torch.cat(vectors), torch.cat(matrices)

    def balance(self) -> None:
        """Weigh conditions so that they pull on the parameters as hard as the equation does.

        The pull is the mean square of a row of the Jacobian; conditions with a weight of their own keep it. Meant to be
        called once, on a field that knows nothing: repeated, it lets weights grow without end.

        Source: Wang et al. (2022), "When and why PINNs fail to train", arXiv 2007.14527, equation 6.5.
        """
        parameters = self.parameters
        count = sum(p.numel() for p in parameters)
        pulls: dict[str, list[float]] = {}
        for block in self.blocks:
            tape = Tape()
            pulls[block.term.name] = []
            for residual in self.at(block, tape):
                out = residual.new_zeros(len(block.points), count)
                rows(residual, tape, parameters, out)
                pulls[block.term.name].append(float(out.square().sum(1).mean()))
        equation = max(pulls["residual"])
        for term in self.terms:
            own = getattr(term.condition, "weight", None)
            self.weights[term.name] = [
                float(own) if own is not None else equation / pull if pull > 0 else 1.0 for pull in pulls[term.name]
            ]

    @torch.no_grad()
    def squares(self, parts: Sequence[Part] | None = None) -> dict[str, float]:
        """Return the mean square of each term's residuals, without weights; of ``parts`` if they are at hand."""
        sums: dict[str, float] = {}
        for block, _, residual in self.parts() if parts is None else parts:
            sums[block.term.name] = sums.get(block.term.name, 0.0) + float(residual.square().mean())
        return sums

    def solution(self, points: Tensor) -> Tensor:
        """Return the fields at points ``[N, d]``: ``[N, fields]``, what is built in included."""
        out: Tensor = self.field(points)
        if self.exact is None:
            return out
        given, vanishing = self.exact.parts(points)
        return given + vanishing * out
