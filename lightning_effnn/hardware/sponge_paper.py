"""The simulator of the sponge-example paper, for reproducing its figures.

Shumailov et al., "Sponge Examples: Energy-Latency Attacks on Neural Networks", EuroS&P 2021, arXiv 2006.03463,
section IV, and its published code. With ``p`` parameters and buffers, ``x`` inputs and ``y`` outputs over
all calls of leaf modules, of which ``p', x', y'`` are not zero, and ``n`` operations:

    E = 1950 pJ (p' + x' + y') + 3.7 pJ n (p' / p) (x' / x)

Groups of convolutions are ignored in ``n``, and there is no notion of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_effnn.hardware.accelerator import Accelerator
from lightning_effnn.hardware.operation import Operation
from lightning_effnn.hardware.pricing import OPERATIONS, Component, Cost
from lightning_effnn.hardware.report import CostReport, LayerCost

if TYPE_CHECKING:
    from lightning_effnn.hardware.trace import Trace

_DRAM = Component("DRAM")


class SpongePaper:
    """The engine of the model ``shumailov2021``: modules as a whole, no operation has a price of its own."""

    prices_operations = False

    def estimate(self, trace: Trace, chip: Accelerator) -> CostReport:
        """The paper's energy of the batch as traced, per inference of the deployment batch.

        Parameters are charged once a batch; what depends on the batch is scaled to the deployment batch.
        """
        share = trace.batch_size / (trace.traced_batch_size or trace.batch_size)
        access = chip.access_pJ
        operation_pJ = chip.energies.int8_mac_pJ
        leaves = trace.leaves
        parameters = sum(leaf.parameters_total for leaf in leaves)
        inputs = sum(leaf.inputs_total for leaf in leaves)
        w_density = sum(leaf.parameters_nonzero for leaf in leaves) / parameters if parameters else 1.0
        i_density = sum(leaf.inputs_nonzero for leaf in leaves) / inputs if inputs else 1.0
        layers = []
        for leaf in leaves:
            moved = share * (leaf.inputs_total + leaf.outputs_total)
            moved_nonzero = share * (leaf.inputs_nonzero + leaf.outputs_nonzero)
            work = share * leaf.computations
            operation = Operation(
                name=leaf.name,
                op=leaf.type_name,
                kind="elementwise",
                operations=round(work),
                elements_in=round(share * leaf.inputs_total) + leaf.parameters_total,
                elements_out=round(share * leaf.outputs_total),
                i_density=leaf.inputs_nonzero / leaf.inputs_total if leaf.inputs_total else 1.0,
                w_density=leaf.parameters_nonzero / leaf.parameters_total if leaf.parameters_total else 1.0,
            )
            scalars = moved_nonzero + leaf.parameters_nonzero
            cost = Cost(
                {_DRAM: access * scalars, OPERATIONS: operation_pJ * work * w_density * i_density},
                dram_bits=32 * scalars,
            )
            all_scalars = moved + leaf.parameters_total
            dense = Cost({_DRAM: access * all_scalars, OPERATIONS: operation_pJ * work}, dram_bits=32 * all_scalars)
            layers.append(LayerCost(operation, None, cost, dense))
        return CostReport(
            accelerator=chip,
            layers=tuple(layers),
            coverage=trace.coverage,
            unknown=dict(trace.unknown),
            notes=trace.notes,
            has_values=trace.has_values,
            weights_bits=32.0 * sum(leaf.parameters_nonzero for leaf in leaves),
            macs_counted=trace.macs,
            effectual_macs_counted=trace.effectual_macs,
            act_density_counted=i_density,
        )

    def estimate_operations(self, operations: Sequence[Operation], chip: Accelerator) -> CostReport:
        """Refuse: what is counted are the modules of a network.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{chip.name} hooks the modules of a network: it needs a trace, not layer rows")
