"""What makes a compressed model final: other tensors as the file will hold them, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_effnn.compression.codec import decode_tensor, encode_tensor
from lightning_effnn.formats.declared import forget_formats
from lightning_effnn.quantization import forget_weights, strip_

Other = Literal["fp32", "fp16", "int8"]


@torch.no_grad()
def round_others_(model: nn.Module, other: Other, exclude: Iterable[Tensor] = ()) -> None:
    """Give biases, norms and running statistics the values that a file with ``other`` will hold, in place.

    Args:
        model: any module.
        other: as for :func:`lightning_effnn.compression.save_compressed`; ``"fp32"`` changes nothing.
        exclude: tensors to leave alone, compared by identity.

    >>> layer = nn.Linear(2, 2)
    >>> round_others_(layer, "fp16", exclude=[layer.weight])
    >>> bool((layer.bias.half().float() == layer.bias).all())
    True
    """
    if other == "fp32":
        return
    left = {id(tensor) for tensor in exclude}
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) not in left and tensor.is_floating_point():
            encoded = encode_tensor(tensor.detach().cpu(), None, other)
            tensor.copy_(decode_tensor(encoded.data, tensor.shape, tensor.dtype))


def bake_(model: nn.Module) -> nn.Module:
    """Forget declared formats, take activation quantisers off: plain weights, nothing of this package on the modules.

    The weights already are the quantised ones; the model is returned for chaining. Save it as an ``.effnn`` file
    first: afterwards values are found by what they are, not by their format.

    >>> from lightning_effnn.compression import focus_model_
    >>> from lightning_effnn.formats import declared_formats
    >>> layer = nn.Linear(20, 20)
    >>> _ = focus_model_(layer)
    >>> len(declared_formats(layer)), len(declared_formats(bake_(layer)))
    (1, 0)
    """
    forget_formats(model)
    forget_weights(model)
    return strip_(model)
