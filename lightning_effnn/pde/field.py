"""The function that is looked for: an encoding and a small network behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_effnn._random import random_state_kept
from lightning_effnn.pde.encodings import Encoding, PositionalEncoding

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh, "silu": nn.SiLU, "gelu": nn.GELU, "softplus": nn.Softplus, "sigmoid": nn.Sigmoid, "relu": nn.ReLU,
}  # fmt: skip


class Scale(nn.Module):
    """Coordinates scaled to [-1, 1] over a box.

    >>> Scale([0.0, 10.0], [1.0, 30.0])(torch.tensor([[0.5, 30.0]]))
    tensor([[0., 1.]])
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("low", torch.tensor(low, dtype=torch.float64))
        self.register_buffer("high", torch.tensor(high, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``[N, d]``."""
        half = (self.high - self.low) / 2
        return (x - (self.low + half).to(x.dtype)) / half.to(x.dtype)


class Field(nn.Module):
    """A small network on encoded coordinates.

    Layers are made by :meth:`bind`, which a solver calls with its problem's domain.

    Args:
        encoding: of the coordinates; :class:`~lightning_effnn.pde.PositionalEncoding` with 3 frequencies if None,
            ``"none"`` for plain coordinates.
        hidden: widths of the hidden layers.
        activation: ``"tanh"``, ``"silu"``, ``"gelu"``, ``"softplus"``, ``"sigmoid"``, or ``"relu"`` (first-order
            equations only).

    Raises:
        ValueError: no hidden layer, a width below 1, an unknown activation.

    >>> field = Field(PositionalEncoding(2), hidden=(8,))
    >>> field.bind([-1.0, 0.0], [1.0, 1.0], outputs=1)
    >>> field(torch.zeros(5, 2, dtype=torch.float64)).shape
    torch.Size([5, 1])
    """

    def __init__(
        self, encoding: Encoding | str | None = None, hidden: Sequence[int] = (24, 24), activation: str = "tanh"
    ) -> None:
        super().__init__()
        if not hidden or any(width < 1 for width in hidden):
            raise ValueError(f"hidden={hidden!r}: widths of one hidden layer or more are needed")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation={activation!r}: use one of {', '.join(map(repr, ACTIVATIONS))}")
        if isinstance(encoding, str) and encoding != "none":
            raise ValueError(f"encoding={encoding!r}: use an encoding, None, or 'none' for plain coordinates")
        self.encoding = PositionalEncoding(3) if encoding is None else encoding
        self.hidden, self.activation = tuple(hidden), activation

    @property
    def bound(self) -> bool:
        """Whether there are layers."""
        return hasattr(self, "layers")

    def bind(
        self,
        low: Sequence[float],
        high: Sequence[float],
        outputs: int,
        periodic: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        """Make the layers, in double precision.

        Args:
            low, high: corners of the box around the domain.
            outputs: number of fields.
            periodic: axes along which the field has to be.
            seed: of the weights.
        """
        dim = len(low)
        place = torch.get_default_device()
        with random_state_kept(), torch.device("cpu"):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed all devices
            if isinstance(self.encoding, Encoding):
                self.encoding.bind(dim, periodic)
                width = self.encoding.features
            elif periodic:
                raise ValueError("plain coordinates can't be periodic: give the field an encoding")
            else:
                width = dim
            layers: list[nn.Module] = []
            for hidden in self.hidden:
                layers += [nn.Linear(width, hidden), ACTIVATIONS[self.activation]()]
                width = hidden
            layers.append(nn.Linear(width, outputs))
            for layer in layers:
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_normal_(layer.weight)
                    nn.init.zeros_(layer.bias)
        self.scale = Scale(low, high)
        self.layers = nn.Sequential(*layers)
        self.double().to(place)

    def features(self, x: Tensor) -> Tensor:
        """Scale and encode ``[N, d]``: what comes before the first layer."""
        scaled = self.scale(x)
        out: Tensor = self.encoding(scaled) if isinstance(self.encoding, nn.Module) else scaled
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return the fields ``[N, outputs]`` at points ``[N, d]``."""
        out: Tensor = self.layers(self.features(x))
        return out

    @property
    def smoothness(self) -> float:
        """Highest order of derivatives that mean something."""
        inner = self.encoding.smoothness if isinstance(self.encoding, Encoding) else math.inf
        return min(inner, 1.0 if self.activation == "relu" else math.inf)


def encode(
    net: nn.Module, encoding: Encoding, low: Sequence[float] | None = None, high: Sequence[float] | None = None
) -> nn.Module:
    """Give a network of coordinates an encoding: its first linear layer is made anew, wider.

    Args:
        net: any module whose first ``nn.Linear``, in the order of ``modules()``, takes the coordinates.
        encoding: of the coordinates.
        low, high: corners of the box around the domain; -1 and 1 if None.

    Returns:
        A module that scales, encodes, and runs ``net``. ``net`` itself is changed.

    Raises:
        ValueError: no linear layer.

    >>> net = encode(nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), PositionalEncoding(3))
    >>> net(torch.zeros(5, 2)).shape
    torch.Size([5, 1])
    """
    found = next(((name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear)), None)
    if found is None:
        raise ValueError("the network has no nn.Linear that could take encoded coordinates")
    name, first = found
    dim = first.in_features
    encoding.bind(dim)
    encoding.to(first.weight.device, first.weight.dtype)
    wider = nn.Linear(
        encoding.features, first.out_features, first.bias is not None, first.weight.device, first.weight.dtype
    )
    scale = Scale([-1.0] * dim if low is None else low, [1.0] * dim if high is None else high)
    scale.to(first.weight.device)
    if not name:
        return nn.Sequential(scale, encoding, wider)
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, wider)
    return nn.Sequential(scale, encoding, net)
