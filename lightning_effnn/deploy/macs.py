"""How many multiply-accumulates each operation of a graph does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def macs_of(network: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[str, int]:
    """Run ``network`` once and return the multiply-accumulates of its products by the names of their nodes.

    Nodes without any are left out. Recurrent layers and attention are run as the products that they consist of.

    Args:
        network: a graph in eval mode.
        inputs: what it is called with.
    """
    counter = _Counter(network)
    onednn = torch._C._get_mkldnn_enabled()
    torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            counter.run(*inputs, enable_io_processing=True)
    finally:
        torch.backends.mkldnn.set_flags(onednn)  # type: ignore[no-untyped-call]
    return counter.macs


class _Counter(fx.Interpreter):
    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.macs: dict[str, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function":
            return super().run_node(n)
        with FlopCounterMode(display=False) as counter:
            result = super().run_node(n)
        if counter.get_total_flops():
            self.macs[n.name] = counter.get_total_flops() // 2
        return result
