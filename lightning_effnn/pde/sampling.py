"""Where residuals are taken: low-discrepancy points, more of them where the equation holds least."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from lightning_effnn.pde.problem import Term
from lightning_effnn.pde.residuals import Block, Residuals

POOL = 4
"""Candidates for each point that is chosen."""
BINS = 32
"""Slices of time among which causality is kept."""


class Sampler:
    """Draws points for a problem's terms; which ones follows from the seed, the number of the draw and the field.

    Args:
        points: inside the domain.
        boundary_points: for each condition, twice as many in three or more dimensions.
        adaptive: from the second draw on, half of the points are chosen with a probability that rises with this power
            of the residual; 0 chooses evenly.
        causal: how strictly times wait for those before them; 0 lets all count alike.
        seed: of all draws.

    Raises:
        ValueError: an argument out of range.

    Source: Wu et al. (2023), "A comprehensive study of non-adaptive and residual-based adaptive sampling", arXiv
    2207.10289 (RAD, with c = 1); Wang et al. (2022), "Respecting causality is all you need", arXiv 2203.07404.

    >>> Sampler(points=100).state_dict()
    {'draws': 0}
    """

    def __init__(
        self, points: int = 2048, boundary_points: int = 256, adaptive: float = 2.0, causal: float = 0.0, seed: int = 0
    ) -> None:
        if points < 1 or boundary_points < 1:
            raise ValueError(f"points={points!r}, boundary_points={boundary_points!r}: use 1 or more")
        if adaptive < 0 or causal < 0:
            raise ValueError(f"adaptive={adaptive!r}, causal={causal!r}: use 0 or more")
        self.points, self.boundary_points = points, boundary_points
        self.adaptive, self.causal, self.seed = adaptive, causal, seed
        self.draws = 0

    def state_dict(self) -> dict[str, int]:
        """Return how many draws there were."""
        return {"draws": self.draws}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there."""
        self.draws = int(state["draws"])

    def draw(self, residuals: Residuals) -> list[Block]:
        """Return new points for each term, with all that does not depend on parameters."""
        blocks = []
        for k, term in enumerate(residuals.terms):
            points, normals = self._choose(residuals, term, 1000 * self.draws + k)
            block = residuals.block(term, points, normals)
            if term.condition is None and self.causal and "t" in residuals.problem.domain.names:
                block.emphasis = self._emphasis(residuals, block)
            blocks.append(block)
        self.draws += 1
        return blocks

    def fixed(self, residuals: Residuals) -> list[Block]:
        """Return points that are the same in every call, for comparisons between steps."""
        return [
            residuals.block(term, *self.spread(residuals, term, self._count(residuals, term), 999_983 + k))
            for k, term in enumerate(residuals.terms)
        ]

    def _count(self, residuals: Residuals, term: Term) -> int:
        if term.condition is None:
            return self.points
        return self.boundary_points * (2 if len(residuals.problem.domain.names) > 2 else 1)

    def spread(self, residuals: Residuals, term: Term, count: int, number: int = 0) -> tuple[Tensor, Tensor]:
        """Draw about ``count`` points evenly."""
        domain = residuals.problem.domain
        seed = self.seed * 1_000_003 + number
        engine = SobolEngine(len(domain.names), scramble=True, seed=seed)  # type: ignore[no-untyped-call]
        unit = engine.draw(count, dtype=torch.float64)
        points, normals = residuals.problem.sample(term, unit)
        if term.condition is None and len(points) < count:  # a shape fills a part of the box around it
            more = engine.draw(int(count * (count / max(len(points), 1) - 1) * 1.1) + 8, dtype=torch.float64)
            extra, extra_normals = residuals.problem.sample(term, more)
            points, normals = torch.cat([points, extra])[:count], torch.cat([normals, extra_normals])[:count]
        like = residuals.like
        return points.to(like), normals.to(like)

    def _choose(self, residuals: Residuals, term: Term, number: int) -> tuple[Tensor, Tensor]:
        count = self._count(residuals, term)
        if term.condition is not None or not self.adaptive or self.draws == 0:
            return self.spread(residuals, term, count, number)
        points, normals = self.spread(residuals, term, POOL * count, number)
        with torch.no_grad():
            parts = residuals.at(residuals.block(term, points, normals))
            size = torch.stack([part.square() for part in parts]).sum(0).sqrt()
        share = (size / size.mean().clamp_min(1e-300)) ** self.adaptive
        share = share / share.mean().clamp_min(1e-300) + 1
        if not bool(share.isfinite().all()):
            return points[:count], normals[:count]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        chosen = torch.multinomial(share.double().cpu(), count, generator=generator).to(points.device)
        return points[chosen], normals[chosen]

    def _emphasis(self, residuals: Residuals, block: Block) -> Tensor:
        """Weigh each time by how well the equation holds before it."""
        axis = residuals.problem.domain.names.index("t")
        low, high = residuals.problem.domain.low[axis], residuals.problem.domain.high[axis]
        with torch.no_grad():
            square = torch.stack([part.square() for part in residuals.at(block)]).sum(0)
        bins = ((block.points[:, axis] - low) / (high - low) * BINS).long().clamp(0, BINS - 1)
        total = square.new_zeros(BINS).index_add_(0, bins, square)
        counts = square.new_zeros(BINS).index_add_(0, bins, torch.ones_like(square)).clamp_min(1)
        before = torch.cumsum(total / counts, 0) - total / counts
        return torch.exp(-self.causal * before / (total / counts).mean().clamp_min(1e-300) / BINS)[bins]
