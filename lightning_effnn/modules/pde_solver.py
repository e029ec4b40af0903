"""A LightningModule that solves a partial differential equation."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_warn
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_effnn._files import write_whole
from lightning_effnn.pde.builtin import BuiltIn
from lightning_effnn.pde.conditions import Periodic
from lightning_effnn.pde.encodings import PositionalEncoding
from lightning_effnn.pde.field import Field
from lightning_effnn.pde.jacobian import NotCovered
from lightning_effnn.pde.levenberg_marquardt import LEAST_DAMPING, LevenbergMarquardt
from lightning_effnn.pde.plots import plot_solution
from lightning_effnn.pde.problem import Problem
from lightning_effnn.pde.residuals import Residuals, Unknowns
from lightning_effnn.pde.sampling import Sampler

OPTIMIZERS = ("lm", "adam", "lbfgs", "adam+lbfgs")
BETTER = 0.9
"""A loss counts as lower when it is at most this share of the lowest before."""
GAP = 10.0
"""Times the loss at the points of an epoch, from which on a loss at fixed points says that the former were learned by
heart: 1 to 7 on smooth problems and a shock, 100 and more where derivatives are infinite at a corner."""
MOST_HELD = 1e-4
"""Least damping is raised up to here; more was no better at a corner."""


class PDESolver(L.LightningModule):
    """Finds the fields that satisfy an equation.

    An epoch is ``steps_per_epoch`` steps on one draw of points; the next draw has more of them where the equation holds
    least. The fit ends by itself when ``patience`` epochs have brought nothing; the best parameters are kept.

    Logs each epoch ``pde/residual`` (root mean square of the equation's residual at fixed points), ``pde/boundary`` (of
    conditions that aren't built in), ``pde/rel_l2`` (against the problem's reference, if it has one: the largest over
    fields), and ``pde/NAME`` of each unknown.

    Args:
        problem: see :class:`~lightning_effnn.pde.Problem`.
        field: what is trained: a :class:`~lightning_effnn.pde.Field`, or any module from ``[N, d]`` to ``[N, fields]``.
        optimizer: ``"lm"`` (Levenberg-Marquardt), ``"adam"``, ``"lbfgs"``, or ``"adam+lbfgs"``: Adam for the first half
            of ``max_epochs``.
        exact: build conditions into the field where that can be done: given values on faces of a box, beginnings,
            periodicity. What is left is learned.
        points, boundary_points, adaptive, causal: see :class:`~lightning_effnn.pde.Sampler`.
        steps_per_epoch: on one draw of points.
        patience: epochs without progress after which the fit ends; 0 goes on to ``max_epochs`` and keeps the last
            parameters, as callbacks that change weights need it.
        lr: of Adam.
        seed: of weights and points.

    Raises:
        ValueError: an argument out of range, or a field that lacks a derivative the equation asks for.
        MisconfigurationException: in a fit, half precision.

    Source: a reconstruction from the abstract of the NeRF-encoding PDE work; fields as in Raissi et al. (2019),
    "Physics-informed neural networks".

    >>> import torch
    >>> from lightning_effnn import pde
    >>> problem = pde.Problem(
    ...     pde.Box(x=(0, 1)), lambda u, c: u.xx + math.pi**2 * torch.sin(math.pi * c.x), [pde.Dirichlet(0.0)],
    ...     reference=lambda c: torch.sin(math.pi * c.x),
    ... )
    >>> solver = PDESolver(problem, pde.Field(hidden=(8,)), points=64)
    >>> trainer = L.Trainer(max_epochs=2, logger=False, enable_checkpointing=False, enable_progress_bar=False,
    ...                     enable_model_summary=False, accelerator="cpu")
    >>> trainer.fit(solver)
    >>> solver(torch.tensor([[0.5]]))
    tensor([[1.000]], dtype=torch.float64)
    """

    def __init__(
        self,
        problem: Problem,
        field: nn.Module | None = None,
        optimizer: Literal["lm", "adam", "lbfgs", "adam+lbfgs"] = "lm",
        exact: bool = True,
        points: int = 2048,
        boundary_points: int = 256,
        adaptive: float = 2.0,
        causal: float = 0.0,
        steps_per_epoch: int = 10,
        patience: int = 10,
        lr: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={optimizer!r}: use one of {', '.join(map(repr, OPTIMIZERS))}")
        if steps_per_epoch < 1 or patience < 0 or not lr > 0:
            raise ValueError(
                f"steps_per_epoch={steps_per_epoch!r}, patience={patience!r}, lr={lr!r}: at least 1, 0, above 0"
            )
        self.automatic_optimization = False
        self.problem, self.optimizer, self.lr = problem, optimizer, lr
        self.steps_per_epoch, self.patience = steps_per_epoch, patience
        self.sampler = Sampler(points, boundary_points, adaptive, causal, seed)
        self.field = Field(PositionalEncoding(3), hidden=(20, 20)) if field is None else field
        periodic = problem.periodic_axes if exact and isinstance(self.field, Field) else ()
        if isinstance(self.field, Field) and not self.field.bound:
            self.field.bind(problem.domain.low, problem.domain.high, len(problem.fields), periodic, seed)
        self.unknowns = Unknowns(problem.unknowns)
        self.residuals = Residuals(problem, self.field, self.unknowns, BuiltIn(problem) if exact else None)
        if periodic:  # by their encoding
            kept = (t for t in self.residuals.terms if not isinstance(t.condition, Periodic))
            self.residuals.terms = tuple(kept)
        self._best: tuple[float, int, dict[str, Tensor]] | None = None
        self._epochs = 0

    def forward(self, points: Tensor) -> Tensor:
        """Return the fields at points ``[N, d]``, columns in the order of the domain's names: ``[N, fields]``.

        There is a graph behind them if the points require gradients.

        Raises:
            ValueError: another number of columns, or a point outside the domain.
        """
        domain = self.problem.domain
        if points.ndim != 2 or points.shape[1] != len(domain.names):
            raise ValueError(f"points are {list(points.shape)}: [N, {len(domain.names)}] ({', '.join(domain.names)})")
        points = points.to(self.residuals.like)
        outside = ~domain.contains(points)
        if bool(outside.any()):
            where = points[outside][0].tolist()
            at = ", ".join(f"{n}={v:g}" for n, v in zip(domain.names, where, strict=True))
            raise ValueError(f"{int(outside.sum())} of {len(points)} points are outside the domain, for example {at}")
        with torch.set_grad_enabled(points.requires_grad and torch.is_grad_enabled()):
            return self.residuals.solution(points)

    @torch.no_grad()
    def rel_l2(self, points: int = 4096) -> dict[str, float]:
        """Return the relative L2 error of each field against the problem's reference, at evenly spread points.

        Raises:
            ValueError: the problem has no reference.
        """
        where, _ = Sampler(points, seed=1).spread(self.residuals, self.residuals.terms[0], points)
        known, found = self.problem.solution(where), self.residuals.solution(where)
        errors = (found - known).norm(dim=0) / known.norm(dim=0)
        return dict(zip(self.problem.fields, errors.tolist(), strict=True))

    # --- the fit

    def train_dataloader(self) -> torch.utils.data.DataLoader[int]:
        """Numbers of steps: points are drawn by the sampler."""
        return torch.utils.data.DataLoader(range(self.steps_per_epoch))  # type: ignore[arg-type]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return one optimizer, or Adam and L-BFGS."""
        parameters = self.residuals.parameters
        made: dict[str, Callable[[], torch.optim.Optimizer]] = {
            "lm": lambda: LevenbergMarquardt(parameters, jacobian=self.residuals.jacobian),
            "adam": lambda: torch.optim.Adam(parameters, lr=self.lr),
            "lbfgs": lambda: torch.optim.LBFGS(parameters, max_iter=20, line_search_fn="strong_wolfe"),
        }
        return [made[name]() for name in self.optimizer.split("+")]

    def on_fit_start(self) -> None:
        """Refuse half precision; draw the first points."""
        if not str(self.trainer.precision).startswith(("32-true", "64-true")):
            raise MisconfigurationException(
                f"PDESolver with precision={self.trainer.precision!r}: derivatives need '32-true' (the field "
                "computes in double precision there as well) or '64-true'"
            )
        fresh = self.sampler.draws == 0
        draws = self.sampler.draws
        self.residuals.blocks = self.sampler.fixed(self.residuals)
        if fresh:
            self._balance()
        if self.optimizer == "lm":
            self._check_jacobian()
        self.sampler.draws = draws

    def _balance(self) -> None:
        try:
            self.residuals.balance()
        except NotCovered:
            rank_zero_warn("conditions are not balanced against the equation: the field has no per-row gradients")

    def _check_jacobian(self) -> None:
        try:
            self.residuals.jacobian()
        except NotCovered as error:
            rank_zero_warn(f"Levenberg-Marquardt goes on with conjugate gradients: {error}")
            self._lm.param_groups[0]["method"] = "cg"

    @property
    def _lm(self) -> LevenbergMarquardt:
        optimizer: Any = self.optimizers()
        lm: LevenbergMarquardt = optimizer.optimizer
        return lm

    def on_train_epoch_start(self) -> None:
        """Draw new points."""
        self.residuals.blocks = self.sampler.draw(self.residuals)
        encoding: Any = getattr(self.field, "encoding", None)
        if getattr(encoding, "coarse_to_fine", False):  # all frequencies are open from the middle of the fit on
            encoding.set_progress(2 * self.current_epoch / max(self.trainer.max_epochs or 1, 1))

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        """Take one step."""
        optimizers: Any = self.optimizers()
        if isinstance(optimizers, list):
            late = 2 * self.current_epoch >= (self.trainer.max_epochs or 0)
            optimizer = optimizers[-1 if late else 0]
        else:
            optimizer = optimizers

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = 0.5 * self.residuals().square().sum()
            self.manual_backward(value)
            return value

        closure: Callable[[], Tensor] = self.residuals if isinstance(optimizer.optimizer, LevenbergMarquardt) else loss
        try:
            optimizer.step(closure=closure)
        except FloatingPointError as error:
            rank_zero_warn(f"the fit ends with the best parameters so far: {error}")
            self.trainer.should_stop = True

    def on_train_epoch_end(self) -> None:
        """Measure at fixed points, log, keep the best, end if nothing more is gained."""
        learned = self._total(self.residuals.squares())
        drawn, self.residuals.blocks = self.residuals.blocks, self.sampler.fixed(self.residuals)
        squares = self.residuals.squares()
        self.residuals.blocks = drawn
        total = self._total(squares)
        if self.optimizer == "lm":
            self._hold_back(total / max(learned, 1e-300))
        self.log("pde/residual", math.sqrt(squares["residual"]), prog_bar=True)
        conditions = [square for name, square in squares.items() if name != "residual"]
        if conditions:
            self.log("pde/boundary", math.sqrt(sum(conditions)), prog_bar=True)
        if self.problem.reference is not None:
            self.log("pde/rel_l2", max(self.rel_l2().values()), prog_bar=True)
        for name, value in self.unknowns.values().items():
            self.log(f"pde/{name}", value, prog_bar=True)
        self._epochs += 1
        self._judge(total)

    def _total(self, squares: dict[str, float]) -> float:
        return sum(max(self.residuals.weights[name]) * square for name, square in squares.items())

    def _hold_back(self, gap: float) -> None:
        """Damp steps that fit a draw of points and tear the field apart between them."""
        group = self._lm.param_groups[0]
        least = 10 * self._lm.damping if gap > GAP else group["least_damping"] / 10
        group["least_damping"] = min(max(least, LEAST_DAMPING), MOST_HELD)

    def _judge(self, total: float) -> None:
        if self._best is None or total < self._best[0]:
            since = self._epochs if self._best is None or total < BETTER * self._best[0] else self._best[1]
            self._best = (total, since, self._snapshot())
        elif not math.isfinite(total):
            self.trainer.should_stop = True
        if self.patience and self._epochs - self._best[1] >= self.patience:
            self.trainer.should_stop = True

    def _snapshot(self) -> dict[str, Tensor]:
        return {k: v.detach().clone() for k, v in self.state_dict().items()}

    def on_fit_end(self) -> None:
        """Go back to the best parameters."""
        if self.patience and self._best is not None:
            self.load_state_dict(self._best[2])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what a fit needs to go on."""
        checkpoint["pde"] = {
            "sampler": self.sampler.state_dict(), "weights": self.residuals.weights, "epochs": self._epochs,
            "best": self._best,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        state = checkpoint["pde"]
        self.sampler.load_state_dict(state["sampler"])
        self.residuals.weights, self._epochs = dict(state["weights"]), state["epochs"]
        self._best = tuple(state["best"]) if state["best"] is not None else None

    # --- afterwards

    def save(self, path: str | Path) -> None:
        """Write the parameters to a safetensors file."""
        meta = {"names": self.problem.domain.names, "fields": self.problem.fields, "low": self.problem.domain.low,
                "high": self.problem.domain.high}  # fmt: skip
        tensors = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        write_whole(path, lambda beside: save_file(tensors, beside, {"pde": json.dumps(meta)}))

    def load(self, path: str | Path) -> PDESolver:
        """Read the parameters that :meth:`save` wrote, into a solver that was made in the same way.

        Raises:
            ValueError: no such file, or one of another problem or field; the message says what differs.
        """
        try:
            with safe_open(path, framework="pt") as file:
                meta = json.loads((file.metadata() or {})["pde"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except Exception as error:
            raise ValueError(f"{path} is no file that PDESolver.save wrote: {error}") from error
        domain = self.problem.domain
        mine = {"names": domain.names, "fields": self.problem.fields, "low": domain.low, "high": domain.high}
        for key, value in mine.items():
            if list(value) != meta.get(key):
                raise ValueError(f"{path}: {key} are {meta.get(key)}, the problem's {list(value)}")
        try:
            self.load_state_dict(tensors)
        except RuntimeError as error:
            raise ValueError(f"{path} holds another field: {error}") from error
        return self

    def plot(self, path: str | Path) -> None:
        """Draw solution, residual, and, where there is a reference, reference and error.

        Raises:
            ImportError: matplotlib is missing; the message names the extra.
        """
        plot_solution(self.residuals, path)
