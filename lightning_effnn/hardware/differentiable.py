"""Energy as a differentiable function of bit widths and densities.

The number that search and sponge training use as a loss is the number of the report: the mapping and its
transfers are held fixed, traffic is proportional to the bits an element takes, and the price of a
multiplication follows the widths of its factors. At the traced widths and densities the value equals
``report.energy_uJ``; elsewhere it is the first-order price of a change, exact as long as the mapping stays the
best one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_effnn.hardware.engines import check_prices_operations
from lightning_effnn.hardware.pricing import Storage, mac_components
from lightning_effnn.hardware.report import CostReport


class EnergyModel:
    """Energy of a report's network in uJ, given widths and densities of its multiply-accumulate layers.

    Args:
        report: what :func:`lightning_effnn.hardware.estimate` returned, on a chip that prices operations.

    Attributes:
        names: module name of each of the ``N`` multiply-accumulate operations, in order.
        operations: these operations, as traced.

    Raises:
        ValueError: the report's chip prices whole modules, which depend on no width.

    >>> import torch
    >>> from lightning_effnn import hardware
    >>> trace = hardware.trace(torch.nn.Linear(64, 10), torch.rand(1, 64))
    >>> model = EnergyModel(hardware.estimate(trace, "tpu_like"))
    >>> bits = torch.full((1,), 32.0, requires_grad=True)
    >>> model.energy_uJ(w_bits=bits).backward()
    >>> bool(bits.grad > 0)
    True
    """

    def __init__(self, report: CostReport) -> None:
        check_prices_operations(report.accelerator)
        self._chip = report.accelerator
        self._layers = [c for c in report.layers if c.mapping is not None]
        self._rest = sum(float(c.cost.energy_pJ) * c.operation.repeats for c in report.layers if c.mapping is None)
        self.names = [c.operation.name for c in self._layers]
        self.operations = [c.operation for c in self._layers]

    def energy_uJ(
        self,
        *,
        w_bits: Tensor | None = None,
        i_bits: Tensor | None = None,
        o_bits: Tensor | None = None,
        w_density: Tensor | None = None,
        i_density: Tensor | None = None,
        o_density: Tensor | None = None,
    ) -> Tensor:
        """Total energy in uJ, a scalar tensor; what is not given stays as traced.

        Args:
            w_bits, i_bits, o_bits: ``[N]`` widths of weights, inputs, outputs.
            w_density, i_density, o_density: ``[N]`` shares of non-zeros; or ``[N, B]``, for B inputs at once: the
                energy is then ``[B]``.

        Raises:
            TypeError: what is no tensor.
            ValueError: a tensor that hasn't one value, or one row, a layer.
        """
        given = {
            "w_bits": w_bits, "i_bits": i_bits, "o_bits": o_bits,
            "w_density": w_density, "i_density": i_density, "o_density": o_density,
        }  # fmt: skip
        for name, tensor in given.items():
            if tensor is None:
                continue
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} is {tensor!r}: a tensor of one value for each layer is needed")
            if tensor.dim() not in (1, 2) or len(tensor) != len(self._layers):
                raise ValueError(
                    f"{name} has the shape {tuple(tensor.shape)}: one value (or row) for each of the"
                    f" {len(self._layers)} multiply-accumulate layers is needed"
                )
        total: Any = self._rest
        for index, layer in enumerate(self._layers):
            assert layer.mapping is not None
            as_traced = Storage.of(layer.operation)
            storage = Storage(**{k: getattr(as_traced, k) if v is None else v[index] for k, v in given.items()})
            components, _, _ = mac_components(layer.operation, layer.mapping, self._chip, storage)
            total = total + sum(components.values()) * layer.operation.repeats
        device = next((tensor.device for tensor in given.values() if tensor is not None), torch.device("cpu"))
        return torch.as_tensor(total, device=device) / 1e6
