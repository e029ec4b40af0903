r"""Second-order steps for sums of squares.

.. math:: (J^T J + \lambda\, I)\, \delta = -J^T r

A step that lowers the loss is kept and :math:`\lambda` falls; one that doesn't is taken back and :math:`\lambda` rises.
With up to a few thousand parameters the matrix is built and factored; beyond, conjugate gradients need only products
with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Tensor]
Jacobian = Callable[[], tuple[Tensor, Tensor]]

DENSE = 4000
"""Most parameters for which the matrix is built: 128 MB in double precision."""
LEAST_DAMPING = 1e-15
"""As little as double precision notices."""


class LevenbergMarquardt(Optimizer):
    """Levenberg-Marquardt, for a closure that returns residuals ``[R]`` in place of a loss.

    Args:
        params: one group of parameters.
        damping: to start with, relative to the mean diagonal of ``J^T J``.
        decrease, increase: factors of the damping after a step that was kept, or taken back.
        attempts: most trials with more damping in one step.
        method: ``"dense"``, ``"cg"``, or ``"auto"``: dense up to 4,000 parameters.
        cg_steps: of conjugate gradients, most in one trial.
        jacobian: for the dense method, returns the residuals ``[R]`` and their Jacobian ``[R, P]``; else that of the
            closure is taken row by row, which is dear.
        lr: factor of each step.

    Damping never falls below ``param_groups[0]["least_damping"]``, which may be raised and lowered between steps.

    Raises:
        ValueError: an argument out of range; more than one group.
        FloatingPointError: in :meth:`step`, residuals that are not finite before anything was tried.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
        >>> rosenbrock = lambda: torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])
        >>> optimizer = LevenbergMarquardt([x])
        >>> for _ in range(20):
        ...     loss = optimizer.step(rosenbrock)
        >>> x.detach()
        tensor([1.0000, 1.0000], dtype=torch.float64)

    Source: Marquardt (1963); Moré (1978), "The Levenberg-Marquardt algorithm: implementation and theory".
    """

    def __init__(
        self, params: Iterable[Tensor], damping: float = 1e-3, decrease: float = 0.2, increase: float = 2.0,
        attempts: int = 20, method: str = "auto", cg_steps: int = 200, jacobian: Jacobian | None = None,
        lr: float = 1.0,
    ) -> None:  # fmt: skip
        if not damping > 0 or not 0 < decrease < 1 or not increase > 1:
            raise ValueError(
                f"damping={damping!r}, decrease={decrease!r}, increase={increase!r}: above 0, in (0, 1), above 1"
            )
        if attempts < 1 or cg_steps < 1:
            raise ValueError(f"attempts={attempts!r}, cg_steps={cg_steps!r}: use 1 or more")
        if method not in ("auto", "dense", "cg"):
            raise ValueError(f"method={method!r}: use 'auto', 'dense' or 'cg'")
        super().__init__(params, {"damping": damping, "decrease": decrease, "increase": increase,
                                  "attempts": attempts, "method": method, "cg_steps": cg_steps, "lr": lr,
                                  "least_damping": LEAST_DAMPING})  # fmt: skip
        if len(self.param_groups) != 1:
            raise ValueError("LevenbergMarquardt takes one group of parameters")
        self.jacobian = jacobian

    @property
    def _all(self) -> list[Tensor]:
        return [p for p in self.param_groups[0]["params"] if p.requires_grad]

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Take one step; return the loss, half the sum of squares, after it.

        Args:
            closure: returns the residuals ``[R]`` with their graph.
        """
        if closure is None:
            raise ValueError("LevenbergMarquardt needs a closure that returns residuals")
        group, parameters = self.param_groups[0], self._all
        dense = group["method"] == "dense" or (
            group["method"] == "auto" and sum(p.numel() for p in parameters) <= DENSE
        )
        with torch.enable_grad():
            system: _Dense | _Products = (
                _Dense(closure, parameters, self.jacobian) if dense else _Products(closure, parameters)
            )
        before = system.loss
        if not math.isfinite(before):
            raise FloatingPointError("residuals are not finite: nothing to step from")
        state = self.state.setdefault(parameters[0], {})
        damping = self.damping
        kept = [p.detach().clone() for p in parameters]
        loss = before
        for _ in range(group["attempts"]):
            step = system.solve(damping * system.scale, group["cg_steps"])
            if step is not None and bool(step.isfinite().all()):
                _set(parameters, kept, group["lr"] * step)
                loss = _half_square(closure)
                if math.isfinite(loss) and loss < before:
                    damping = max(damping * group["decrease"], group["least_damping"])
                    break
                _set(parameters, kept, None)
            damping = min(damping * group["increase"], 1e15)
            loss = before
        state["damping"] = damping
        state["kept"] = loss < before
        return parameters[0].new_tensor(loss)

    @property
    def damping(self) -> float:
        """Of the next step, relative to the mean diagonal of ``J^T J``."""
        group = self.param_groups[0]
        state = self.state.get(self._all[0], {})
        return float(max(state.get("damping", group["damping"]), group["least_damping"]))

    @property
    def moved(self) -> bool:
        """Whether the last step was kept."""
        state = self.state.get(self._all[0], {})
        return bool(state.get("kept", True))


def _half_square(closure: Closure) -> float:
    with torch.no_grad():
        return 0.5 * float(closure().square().sum())


@torch.no_grad()
def _set(parameters: list[Tensor], kept: list[Tensor], step: Tensor | None) -> None:
    start = 0
    for parameter, old in zip(parameters, kept, strict=True):
        new = old if step is None else old + step[start : start + old.numel()].view_as(old)
        parameter.data.copy_(new)  # graphs of the residuals stay usable: what they saved is back when they are
        start += old.numel()


class _Dense:
    """The normal equations, built."""

    def __init__(self, closure: Closure, parameters: list[Tensor], given: Jacobian | None) -> None:
        if given is None:
            residual = closure()
            jacobian = _by_rows(residual, parameters)
        else:
            residual, jacobian = given()
        residual, jacobian = residual.detach().double(), jacobian.double()
        self.loss = 0.5 * float(residual.square().sum())
        self.matrix, self.gradient = _gram(jacobian), jacobian.T @ residual
        self.scale = float(self.matrix.diagonal().mean()) or 1.0
        self.dtype = parameters[0].dtype

    def solve(self, damping: float, _: int) -> Tensor | None:
        damped = self.matrix.clone()
        damped.diagonal().add_(damping)
        factor, info = torch.linalg.cholesky_ex(damped)
        if int(info):
            return None
        return torch.cholesky_solve(-self.gradient[:, None], factor)[:, 0].to(self.dtype)


def _gram(jacobian: Tensor) -> Tensor:
    """Return the blocks of ``J^T J`` on and below the diagonal, which is what a Cholesky factorisation reads.

    In four columns of blocks that is five eighths of the product.
    """
    count = jacobian.shape[1]
    matrix = jacobian.new_zeros(count, count)
    size = 8 * math.ceil(count / 32)  # kernels are quickest on multiples of eight
    for start in range(0, count, size):
        torch.mm(jacobian[:, start:].T, jacobian[:, start : start + size], out=matrix[start:, start : start + size])
    return matrix


def _by_rows(residual: Tensor, parameters: list[Tensor]) -> Tensor:
    out = []
    for number in residual:
        row = torch.autograd.grad(number, parameters, retain_graph=True, allow_unused=True)
        out.append(torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                              for p, g in zip(parameters, row, strict=True)]))  # fmt: skip
    return torch.stack(out)


class _Products:
    """Products with ``J`` and its transpose, by derivatives of derivatives."""

    def __init__(self, closure: Callable[[], Tensor], parameters: list[Tensor]) -> None:
        self.parameters, self.residual = parameters, closure()
        self.loss = 0.5 * float(self.residual.detach().square().sum())
        self.probe = torch.zeros_like(self.residual, requires_grad=True)
        self.transposed = self._flat(torch.autograd.grad(self.residual, parameters, self.probe, create_graph=True,
                                                         allow_unused=True))  # fmt: skip
        self.gradient = self._backward(self.residual.detach())
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(self.residual.shape, generator=draw, dtype=torch.float64, device="cpu")
        self.scale = float(self._backward(noise.to(self.residual)).square().mean()) or 1.0  # Hutchinson's estimate

    def _flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                          for p, g in zip(self.parameters, gradients, strict=True)])  # fmt: skip

    def _backward(self, vector: Tensor) -> Tensor:
        grads = torch.autograd.grad(self.residual, self.parameters, vector, retain_graph=True, allow_unused=True)
        return self._flat(grads).detach()

    def _forward(self, vector: Tensor) -> Tensor:
        (out,) = torch.autograd.grad(self.transposed, self.probe, vector, retain_graph=True)
        return out

    def solve(self, damping: float, steps: int) -> Tensor | None:
        x = torch.zeros_like(self.gradient)
        rest = -self.gradient
        direction, square = rest.clone(), float(rest @ rest)
        goal = 1e-12 * square
        for _ in range(steps):
            if square <= goal:
                break
            image = self._backward(self._forward(direction)) + damping * direction
            length = square / float(direction @ image)
            x, rest = x + length * direction, rest - length * image
            square, before = float(rest @ rest), square
            direction = rest + (square / before) * direction
        return x
