"""Run a model once to look at it, and leave it as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_effnn._random import random_state_kept
from lightning_effnn._shown import show_all
from lightning_effnn._threads import kept
from lightning_effnn.quantization.hooks import hosts_of


@contextmanager
def as_in_inference(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in eval mode without gradients, with no product hidden in a fused kernel; then restore it.

    Each module's own mode, buffers, the state of attached quantisers and of random numbers are what they were. Modes
    are shared: several threads may look at a model at once, but none train it meanwhile.

    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    >>> with as_in_inference(model):
    ...     model.training
    False
    >>> model.training
    True
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    quantizers = {id(q): q for _, host in hosts_of(model) for q in (host.quantizer, *(s.quantizer for s in host.swaps))}
    states = [(q, q.training, copy.deepcopy(q.state_dict())) for q in quantizers.values() if q is not None]
    with ExitStack() as stack:
        stack.enter_context(random_state_kept(p.device for p in model.parameters()))
        show_all(stack)
        # Recurrent layers and attention then run as the products they consist of.
        onednn = torch._C._get_mkldnn_enabled()
        # Not flags(), which sets what it was not asked to, and warns.
        torch.backends.mkldnn.set_flags(False)  # type: ignore[no-untyped-call]
        stack.callback(torch.backends.mkldnn.set_flags, onednn)
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.no_grad())
        stack.enter_context(kept(model.modules(), "training"))
        model.eval()
        try:
            yield
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)
            for quantizer, mode, state in states:
                quantizer.train(mode)
                quantizer.load_state_dict(state)
