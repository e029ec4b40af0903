"""Inputs that burn energy: white-box attacks along gradients, a black-box genetic one, and inputs to compare them with.

Parameters are named as in torchattacks: ``eps``, ``alpha``, ``steps``, ``random_start``. All attacks are seeded, work
on batches, run the model as deployed (eval mode, running statistics untouched) and leave it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_effnn.hardware import Accelerator
from lightning_effnn.robustness.activations import as_deployed
from lightning_effnn.robustness.energy import DensityEnergy
from lightning_effnn.robustness.objectives import SIGMA, Density, check_images
from lightning_effnn.robustness.rectifiers import live_rectifiers

Objective = Callable[[Tensor], Tensor]
"""From inputs ``[B, ...]`` to one number for each, ``[B]``."""
_REACH = 0.1
"""Of the gradient through rectifiers that are off; chosen among 0.1, 0.5 and 2 on a small CNN."""
_PATIENCE = 4
"""Steps after which an input that hasn't improved goes back, with a smaller step."""


class Aim:
    """What an attack raises: a differentiable function of inputs, and what it stands for, to tell which input is best.

    Args:
        model: any module.
        x: an example, ``[B, ...]``.
        objective: a measure of all layers' inputs (see :mod:`~lightning_effnn.robustness.objectives`), ``"energy"`` for
            the energy on a chip, or a function of inputs.
        accelerator: for ``"energy"``.
        sigma: of ``"l0"`` and ``"energy"``.

    Raises:
        ValueError: an unknown objective.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        objective: str | Objective,
        accelerator: str | Path | Accelerator,
        sigma: float,
    ) -> None:
        self.smooth: Objective
        self.exact: Objective | None = None
        self.counts = objective in ("l0", "energy")
        if callable(objective):
            self.smooth = objective
        elif objective == "energy":
            energy = DensityEnergy(model, x.detach(), accelerator)
            self.smooth, self.exact = lambda inputs: energy.smooth(inputs, sigma), energy
        else:
            self.smooth = Density(model, objective, sigma)  # type: ignore[arg-type]

    def gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the objective ``[B]`` and its gradient ``[B, ...]``.

        Where zeros are counted, rectifiers that are off have a gradient, else nothing could be switched on.
        """
        x = x.detach().requires_grad_()
        with live_rectifiers(_REACH) if self.counts else nullcontext():
            value = self.smooth(x)
        if value.shape != (len(x),):
            raise ValueError(f"the objective returned the shape {tuple(value.shape)}: [{len(x)}] is needed")
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    def value(self, x: Tensor) -> Tensor:
        """Return what tells the better input: ``[B]``."""
        with torch.no_grad():
            return (self.exact or self.smooth)(x.detach()).detach()


def sponge_pgd(
    model: nn.Module,
    x: Tensor,
    eps: float = 8 / 255,
    alpha: float = 2 / 255,
    steps: int = 10,
    random_start: bool = False,
    *,
    objective: Literal["l0", "l2", "linf", "energy"] | Objective = "l0",
    accelerator: str | Path | Accelerator = "eyeriss_like",
    sigma: float = SIGMA,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
) -> Tensor:
    r"""Raise the objective by projected steps along the gradient's sign, within ``eps`` of ``x`` in the largest norm.

    Where an input hasn't improved for a few steps, it goes back to the best one and takes half the step from there. The
    best
    step is returned, the start included: the objective never ends lower than it began.

    Args:
        model: any module.
        x: ``[B, ...]`` in ``[low, high]``.
        eps: largest change of a number; above 0. With ``eps = high - low`` nothing of ``x`` needs to be left.
        alpha: of a step at first, above 0.
        steps: how many, at least 1.
        random_start: begin at random within ``eps``.
        objective, accelerator, sigma: see :class:`Aim`.
        low, high: range of valid inputs.
        seed: of the random start.

    Returns:
        ``[B, ...]``, in ``[low, high]``, without gradient.

    Raises:
        TypeError, ValueError: inputs that are none; an argument out of range.

    Source: Madry et al. (2018), arXiv 1706.06083, section 2.1; halving: Croce and Hein (2020), arXiv 2003.01690,
    section 3;
    the aim: Shumailov et al. (2021), "Sponge Examples", arXiv 2006.03463, section IV.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> x = torch.rand(3, 4)
    >>> crafted = sponge_pgd(model, x, eps=0.1, alpha=0.02, steps=5)
    >>> bool((crafted - x).abs().max() <= 0.1 + 1e-6)
    True
    """
    check_images(x, low, high)
    _above_zero("eps", eps)
    _above_zero("alpha", alpha)
    at_least_one("steps", steps)
    origin = x.detach()
    with as_deployed(model):
        aim = Aim(model, origin, objective, accelerator, sigma)
        best = _Best(origin, aim)
        crafted = random_inputs(origin, eps, low, high, seed) if random_start else origin
        length = x.new_full((len(x), *[1] * (x.dim() - 1)), alpha)
        before = best.values.clone()
        for step in range(steps):
            gradient = aim.gradient(crafted)[1]
            crafted = crafted + length * gradient.sign()
            crafted = torch.min(torch.max(crafted, origin - eps), origin + eps).clamp(low, high)
            best.see(crafted)
            if (step + 1) % _PATIENCE == 0:
                stuck = best.values <= before
                length[stuck] /= 2
                crafted = torch.where(stuck.view_as(length), best.inputs, crafted)
                before = best.values.clone()
    return best.inputs


def sponge_lbfgs(
    model: nn.Module,
    x: Tensor,
    steps: int = 50,
    lr: float = 1.0,
    eps: float | None = None,
    *,
    objective: Literal["l0", "l2", "linf", "energy"] | Objective = "l2",
    accelerator: str | Path | Accelerator = "eyeriss_like",
    sigma: float = SIGMA,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Raise the objective by L-BFGS, the paper's white-box attack; its objective is the sum of squares, ``"l2"``.

    The inputs stay in range by a change of variables, ``x = middle + radius * tanh(z)``.

    Args:
        model: any module.
        x: ``[B, ...]`` in ``[low, high]``, where the search starts.
        steps: iterations, at least 1.
        lr: of L-BFGS, above 0.
        eps: largest change of a number; None lets the inputs go anywhere in the range.
        objective, accelerator, sigma: see :class:`Aim`.
        low, high: range of valid inputs.

    Returns:
        ``[B, ...]``; of each input the best that was seen.

    Raises:
        TypeError, ValueError: inputs that are none; an argument out of range.

    Source: Shumailov et al. (2021), arXiv 2006.03463, section IV.B; the change of variables is Carlini and Wagner's
    (2017).

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> sponge_lbfgs(model, torch.rand(3, 4), steps=5).shape
    torch.Size([3, 4])
    """
    check_images(x, low, high)
    at_least_one("steps", steps)
    _above_zero("lr", lr)
    if eps is not None:
        _above_zero("eps", eps)
    origin = x.detach()
    floor = torch.full_like(origin, low) if eps is None else (origin - eps).clamp(min=low)
    ceiling = torch.full_like(origin, high) if eps is None else (origin + eps).clamp(max=high)
    middle, radius = (floor + ceiling) / 2, ((ceiling - floor) / 2).clamp(min=1e-6)
    with as_deployed(model):
        aim = Aim(model, origin, objective, accelerator, sigma)
        best = _Best(origin, aim)
        z = torch.atanh(((origin - middle) / radius).clamp(-0.99, 0.99)).requires_grad_()
        optimizer = torch.optim.LBFGS([z], lr=lr, max_iter=steps, max_eval=2 * steps, line_search_fn="strong_wolfe")

        def closure() -> float:
            inputs = middle + radius * torch.tanh(z)
            value, gradient = aim.gradient(inputs)
            best.see(torch.min(torch.max(inputs, floor), ceiling))
            (z.grad,) = torch.autograd.grad(inputs, z, -gradient)
            return -float(value.sum())

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return best.inputs


def sponge_genetic(
    fitness: Objective,
    x: Tensor,
    eps: float | None = None,
    pool: int = 32,
    generations: int = 20,
    mutation: float = 0.05,
    survivors: float = 0.25,
    *,
    low: float = 0.0,
    high: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Raise any measured fitness without a gradient: a pool for each input, crossover and mutation.

    Interrupted by Ctrl-C it returns the best inputs so far.

    Args:
        fitness: from inputs ``[N, ...]`` to ``[N]``: simulated energy, latency, or what a meter says.
        x: ``[B, ...]`` in ``[low, high]``: each input seeds a pool of its own.
        eps: largest change of a number; None lets the inputs go anywhere in the range.
        pool: candidates of each input, at least 2.
        generations: at least 1.
        mutation: share of a child's numbers that are drawn anew.
        survivors: share of the pool that parents come from.
        low, high: range of valid inputs.
        seed: of all random numbers.
        progress: show a bar.

    Returns:
        ``[B, ...]``: the fittest of each pool, or its seed if nothing is fitter.

    Raises:
        TypeError, ValueError: inputs that are none; an argument out of range; a fitness of another shape.

    Source: Shumailov et al. (2021), arXiv 2006.03463, section IV.A: crossover of two parents, here along a random axis.

    >>> crafted = sponge_genetic(lambda inputs: inputs.flatten(1).sum(1), torch.full((2, 1, 4, 4), 0.5), eps=0.1)
    >>> bool((crafted.sum((1, 2, 3)) > 8).all())
    True
    """
    check_images(x, low, high)
    at_least_one("generations", generations)
    if pool < 2:
        raise ValueError(f"pool is {pool!r}: use at least 2 candidates")
    for name, share in (("mutation", mutation), ("survivors", survivors)):
        if not 0 < share <= 1:
            raise ValueError(f"{name} is {share!r}: use a share above 0, up to 1")
    if eps is not None:
        _above_zero("eps", eps)
    genes = _Genes(x.detach(), eps, low, high, mutation, torch.Generator().manual_seed(seed))
    parents = max(2, round(survivors * pool))
    candidates = genes.first(pool)
    best, best_value = x.detach().clone(), _fitness(fitness, x.detach())
    try:
        for _ in bar(generations, progress):
            values = _fitness(fitness, candidates.flatten(0, 1)).view(len(x), pool)
            order = values.argsort(1, descending=True)
            rows = torch.arange(len(x), device=x.device)
            leader = candidates[rows, order[:, 0]]
            better = values[rows, order[:, 0]] > best_value
            best[better], best_value[better] = leader[better], values[rows, order[:, 0]][better]
            candidates = genes.next(candidates[rows[:, None], order[:, :parents]], pool)
    except KeyboardInterrupt:
        pass
    return best


class _Genes:
    """Crossover and mutation within the range of valid inputs."""

    def __init__(
        self, x: Tensor, eps: float | None, low: float, high: float, mutation: float, generator: torch.Generator
    ) -> None:
        self.x, self.mutation, self.generator = x, mutation, generator
        self.floor = torch.full_like(x, low) if eps is None else (x - eps).clamp(min=low)
        self.ceiling = torch.full_like(x, high) if eps is None else (x + eps).clamp(max=high)

    def first(self, pool: int) -> Tensor:
        """The input itself, and others more and more mutated: [B, pool, ...]."""
        shares = torch.linspace(0, 1, pool, device="cpu").view(1, pool, *[1] * (self.x.dim() - 1))
        return self._mutated(self.x.unsqueeze(1).expand(-1, pool, *self.x.shape[1:]), shares)

    def next(self, parents: Tensor, pool: int) -> Tensor:
        """The parents as they are, and their children: [B, pool, ...]."""
        kept = parents.shape[1]
        children = []
        for _ in range(pool - kept):
            pick = torch.randint(kept, (2, len(parents)), generator=self.generator, device="cpu").to(parents.device)
            rows = torch.arange(len(parents), device=parents.device)
            children.append(self._crossed(parents[rows, pick[0]], parents[rows, pick[1]]))
        if not children:
            return parents
        offspring = torch.stack(children, 1)
        share = offspring.new_tensor(self.mutation)
        return torch.cat((parents, self._mutated(offspring, share)), 1)

    def _crossed(self, left: Tensor, right: Tensor) -> Tensor:
        axis = int(torch.randint(1, left.dim(), (), generator=self.generator, device="cpu"))
        size = left.shape[axis]
        cut = int(torch.randint(size + 1, (), generator=self.generator, device="cpu"))
        return torch.cat((left.narrow(axis, 0, cut), right.narrow(axis, cut, size - cut)), axis)

    def _mutated(self, candidates: Tensor, share: Tensor) -> Tensor:
        draws = torch.rand(2, *candidates.shape, generator=self.generator, device="cpu").to(candidates)
        fresh = self.floor.unsqueeze(1) + draws[0] * (self.ceiling - self.floor).unsqueeze(1)
        return torch.where(draws[1] < share.to(candidates), fresh, candidates)


def random_inputs(x: Tensor, eps: float | None = None, low: float = 0.0, high: float = 1.0, seed: int = 0) -> Tensor:
    """Return uniform noise: around ``x`` within ``eps``, or anywhere in the range; what an attack has to beat.

    Args:
        x: ``[B, ...]``.
        eps: largest change of a number; None for noise that has nothing of ``x``.
        low, high: range of valid inputs.
        seed: of the noise.

    Raises:
        TypeError, ValueError: inputs that are none, or an eps that isn't above 0.

    >>> random_inputs(torch.zeros(2, 3), eps=0.1).max() <= 0.1
    tensor(True)
    """
    check_images(x, low, high)
    if eps is not None:
        _above_zero("eps", eps)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(x)
    if eps is None:
        return low + noise * (high - low)
    return (x.detach() + eps * (2 * noise - 1)).clamp(low, high)


class _Best:
    """Of each input the candidate with the highest value."""

    def __init__(self, x: Tensor, aim: Aim) -> None:
        self.inputs, self.aim = x.clone(), aim
        self.values = aim.value(x)

    def see(self, candidates: Tensor) -> None:
        """Keep what is better."""
        values = self.aim.value(candidates)
        better = values > self.values
        self.inputs[better] = candidates.detach()[better]
        self.values = torch.where(better, values, self.values)


def _fitness(fitness: Objective, candidates: Tensor) -> Tensor:
    values = torch.as_tensor(fitness(candidates), device=candidates.device).detach().float()
    if values.shape != (len(candidates),):
        raise ValueError(f"fitness returned the shape {tuple(values.shape)}: [{len(candidates)}] is needed")
    return values.nan_to_num(nan=-torch.inf)


def bar(count: int, progress: bool) -> Iterable[int]:
    """Count generations, with a bar where one is wanted."""
    if not progress:
        return range(count)
    from rich.progress import track

    return track(range(count), description="generations")


def _above_zero(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} is {value!r}: use a number above 0")


def at_least_one(name: str, value: int) -> None:
    """Refuse what is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}: use a whole number of at least 1")
