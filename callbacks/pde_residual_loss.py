"""Train any network of coordinates to satisfy an equation as well."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_effnn.callbacks._loss_term import AddsToLoss, Term
from lightning_effnn.formats.tagging import aside
from lightning_effnn.pde import Problem, Residuals, Sampler
from lightning_effnn.pde.jacobian import NotCovered


class PDEResidualLoss(AddsToLoss):
    """Adds to the loss how badly a network satisfies an equation and its conditions.

    Each step new points are drawn in the domain and on its boundary; the mean squares of the residuals there, times
    ``weight``, join the loss of ``training_step``. Conditions are balanced once, at the first step, against the
    equation.

    Logged each epoch: ``pde/residual`` and ``pde/boundary``, root mean squares.

    Args:
        problem: the equation, see :class:`~lightning_effnn.pde.Problem`, or where it is, ``"package.module:name"``.
        field: name of the submodule that maps coordinates ``[N, d]`` to fields ``[N, fields]``.
        weight: of the residuals' mean square against the loss.
        points, boundary_points: in each step, inside and for each condition.
        seed: of the points.
        prefix: first part of the logged keys.

    Raises:
        ValueError: an argument out of range, or a problem with unknowns.
        MisconfigurationException: at the start of a fit: no such submodule, one that returns another shape, or manual
            optimisation.

    Example:
        >>> from lightning_effnn import pde
        >>> heat = pde.Problem(pde.Box(x=(0, 1), t=(0, 1)), lambda u, c: u.t - u.xx, [pde.Dirichlet(0.0, on="x")])
        >>> PDEResidualLoss(heat, field="net").weight
        1.0

    Source: Raissi et al. (2019), "Physics-informed neural networks", section 3.
    """

    def __init__(
        self,
        problem: Problem | str,
        field: str = "net",
        weight: float = 1.0,
        points: int = 512,
        boundary_points: int = 128,
        seed: int = 0,
        *,
        prefix: str = "pde",
    ) -> None:
        if not weight > 0:
            raise ValueError(f"weight={weight!r}: a number above 0 is needed")
        found = Problem.find(problem) if isinstance(problem, str) else problem
        if found.unknowns:
            raise ValueError(
                f"the problem looks for {', '.join(found.unknowns)}: modules.PDESolver finds unknowns, this callback "
                "trains nothing but the module's own parameters"
            )
        super().__init__(prefix)
        self.problem, self.field, self.weight = problem, field, weight
        self.equation = found
        self.points, self.boundary_points, self.seed = points, boundary_points, seed
        self.sampler = Sampler(points, boundary_points, adaptive=0.0, seed=seed)
        self._weights: dict[str, list[float]] | None = None

    def term(self, trainer: Trainer, pl_module: LightningModule) -> Term:
        """Return the weighted residuals of points that each training step draws."""
        residuals = self._residuals(pl_module)
        self.sampler.draws, self._weights = 0, None  # a checkpoint's state comes after this

        def term(*_: object, **__: object) -> Tensor | None:
            return self.weight * self._loss(residuals, pl_module) if pl_module.training else None

        return term

    def _residuals(self, pl_module: LightningModule) -> Residuals:
        try:
            net = pl_module.get_submodule(self.field)
        except AttributeError as error:
            names = ", ".join(name for name, _ in pl_module.named_children())
            raise MisconfigurationException(f"field={self.field!r}: the module has {names}") from error
        residuals = Residuals(self.equation, net)
        points, _ = self.sampler.spread(residuals, residuals.terms[0], 4)
        was_training = net.training
        try:
            with torch.no_grad():
                out = net.eval()(points)
        finally:
            net.train(was_training)
        expected = (len(points), len(self.equation.fields))
        if tuple(out.shape) != expected:
            raise MisconfigurationException(
                f"{self.field} maps points {list(points.shape)} to {list(out.shape)}: {list(expected)} is needed"
            )
        return residuals

    def _loss(self, residuals: Residuals, pl_module: LightningModule) -> Tensor:
        # in full precision, and not part of what a trace of this step counts
        with aside(), torch.autocast(pl_module.device.type, enabled=False):
            residuals.blocks = self.sampler.draw(residuals)
            if self._weights is None:
                with contextlib.suppress(NotCovered):  # a field of operations without rules: all count alike
                    residuals.balance()
                self._weights = residuals.weights
            residuals.weights = self._weights
            parts = residuals.parts()
            squares = residuals.squares(parts)
            loss = residuals.vector(parts).square().sum()
        rest = sum(square for name, square in squares.items() if name != "residual")
        self._log(pl_module, {"residual": squares["residual"] ** 0.5, "boundary": rest**0.5})
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return what a fit needs to go on."""
        return {"sampler": self.sampler.state_dict(), "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.sampler.load_state_dict(state["sampler"])
        self._weights = state["weights"]
