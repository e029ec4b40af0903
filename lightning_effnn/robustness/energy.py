"""Energy of each input: exactly, by a trace of it, or fast and differentiable, from the densities of its
activations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lightning_effnn import hardware
from lightning_effnn.hardware.engines import check_prices_operations
from lightning_effnn.robustness.activations import Activations, as_deployed, density
from lightning_effnn.robustness.objectives import SIGMA, smooth_l0


class TracedEnergy:
    """Simulated energy and latency of single inputs, each traced by itself.

    Args:
        model: any module.
        accelerator: a preset's name, a YAML file or an ``Accelerator``.

    Raises:
        ValueError: an unknown accelerator.

    >>> energy = TracedEnergy(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "eyeriss_like")
    >>> energy(torch.rand(3, 4)).shape
    torch.Size([3])
    """

    def __init__(self, model: nn.Module, accelerator: str | Path | hardware.Accelerator = "eyeriss_like") -> None:
        self.model = model
        self.chip = hardware.Accelerator.load(accelerator)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the energy of each input in uJ: ``[B]``.

        Args:
            x: ``[B, ...]``.
        """
        return torch.tensor([report.energy_uJ for report in self.reports(x)], device=x.device)

    def reports(self, x: Tensor) -> list[hardware.CostReport]:
        """Return the whole report of each input.

        Args:
            x: ``[B, ...]``.
        """
        with as_deployed(self.model):
            return [hardware.estimate(hardware.trace(self.model, one[None]), self.chip) for one in x]


class DensityEnergy:
    """Energy of a batch of inputs from how dense the inputs of each layer are, everything else as in one traced input.

    Exact as far as zeros go that go into layers with weights; zeros of other tensors stay those of the traced input. An
    attack that needs thousands of energies takes this one, a report :class:`TracedEnergy`.

    Args:
        model: any module.
        example: ``[B, ...]`` whose first input is traced.
        accelerator: as for :class:`TracedEnergy`; one that prices operations.

    Raises:
        ValueError: an accelerator that prices whole modules, or a model without layers with weights.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> energy = DensityEnergy(model, torch.rand(1, 4), "eyeriss_like")
    >>> energy(torch.rand(3, 4)).shape, energy.saves_zeros
    (torch.Size([3]), True)
    """

    def __init__(
        self, model: nn.Module, example: Tensor, accelerator: str | Path | hardware.Accelerator = "eyeriss_like"
    ) -> None:
        chip = hardware.Accelerator.load(accelerator)
        check_prices_operations(chip, "use TracedEnergy for it")
        self.model = model
        with as_deployed(model):
            report = hardware.estimate(hardware.trace(model, example[:1]), chip)
        self._energy = hardware.EnergyModel(report)
        known = Activations(model).names
        self._names = [name if name in known else None for name in self._energy.names]
        self.activations = Activations(model, [name for name in known if name in self._names])
        self._traced = torch.tensor([op.i_density for op in self._energy.operations], device="cpu")

    @property
    def saves_zeros(self) -> bool:
        """Whether the chip spends less where there are zeros."""
        return max(self.savings_uJ().values(), default=0.0) > 1e-9

    def __call__(self, x: Tensor) -> Tensor:
        """Return the energy of each input in uJ, without a gradient: ``[B]``.

        Args:
            x: ``[B, ...]``.
        """
        with as_deployed(self.model), torch.no_grad(), self.activations.collecting() as found:
            self.model(x)
            return self.of({name: _mean([density(t, len(x)) for t in ts]) for name, ts in found.items() if ts}, len(x))

    def smooth(self, x: Tensor, sigma: float = SIGMA) -> Tensor:
        """Return the energy with smooth densities, which has a gradient: ``[B]``.

        Args:
            x: ``[B, ...]``.
            sigma: see :func:`~lightning_effnn.robustness.objectives.smooth_l0`.
        """
        with self.activations.collecting() as found:
            self.model(x)
        return self.of({n: _mean([smooth_l0(t, len(x), sigma) for t in ts]) for n, ts in found.items() if ts}, len(x))

    def of(self, densities: Mapping[str, Tensor], inputs: int) -> Tensor:
        """Return the energy in uJ at given densities: ``[inputs]``.

        Args:
            densities: ``[inputs]`` by layer; of a layer that isn't in it, that of the traced input.
            inputs: how many.
        """
        device = next(iter(densities.values())).device if densities else next(self.model.parameters()).device
        rows = [
            self._traced[number].to(device).expand(inputs) if name not in densities else densities[str(name)]
            for number, name in enumerate(self._names)
        ]
        dense = torch.stack(rows)
        # on a chip that saves nothing the energy doesn't depend on densities: shape and a gradient of zero stay
        return self._energy.energy_uJ(i_density=dense) + 0.0 * dense.sum(0)

    def savings_uJ(self) -> dict[str, float]:
        """Return what a layer would save if nothing but zeros went into it, of what it spends if nothing is zero."""
        layers = len(self._names)
        densities = torch.cat((torch.ones(layers, 1, device="cpu"), 1 - torch.eye(layers, device="cpu")), 1)
        spent = self._energy.energy_uJ(i_density=densities).expand(layers + 1)
        found: dict[str, float] = dict.fromkeys(self.activations.names, 0.0)
        for name, saved in zip(self._names, (spent[0] - spent[1:]).tolist(), strict=True):
            if name is not None:
                found[name] += saved
        return found


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)
