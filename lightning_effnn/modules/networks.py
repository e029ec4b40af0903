"""Small image networks as plain modules. Names of parameters are those of published weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_effnn._weights import load_weights_


class SmallCNN(nn.Module):
    """Two convolutions, a pooling, a third convolution and a linear layer, for images from 8x8 on.

    Args:
        in_channels: channels of the image.
        num_classes: length of the output.
        width: channels of the first convolution; the others have twice as many.

    >>> import torch
    >>> SmallCNN()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.block1 = _conv_bn_relu(in_channels, width)
        self.block2 = _conv_bn_relu(width, 2 * width)
        self.pool = nn.MaxPool2d(2)
        self.block3 = _conv_bn_relu(2 * width, 2 * width)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores ``[B, num_classes]``."""
        hidden = self.pool(self.block2(self.block1(images)))
        hidden = self.average(self.block3(hidden))
        scores: Tensor = self.classifier(hidden.flatten(1))
        return scores


class LeNet5(nn.Module):
    """LeNet-5 in Caffe's sizes, for 28x28 images of one channel (LeCun et al., 1998).

    >>> import torch
    >>> LeNet5()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(1, 20, 5)
        self.conv1 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.logits = nn.Linear(500, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores ``[B, num_classes]``."""
        hidden = F.max_pool2d(F.relu(self.conv0(images)), 2)
        hidden = F.max_pool2d(F.relu(self.conv1(hidden)), 2)
        scores: Tensor = self.logits(F.relu(self.fc1(hidden.flatten(1))))
        return scores


class ResNetCIFAR(nn.Module):
    """ResNet for 32x32 images with parameter-free shortcuts, option A (He et al., 2016, section 4.2).

    Args:
        depth: layers with weights: ``6n + 2`` (20, 32, 44, 56, 110).
        num_classes: length of the output.
        weights: pretrained ones, a safetensors state dict: its path, or its name in the folder that the variable
            ``EFFNN_DATA`` names; ``None`` draws them at random.

    Raises:
        ValueError: another depth; weights of other names or shapes, which are listed.
        FileNotFoundError: there is no such file of weights.

    >>> import torch
    >>> ResNetCIFAR(depth=20)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, depth: int = 20, num_classes: int = 10, weights: str | Path | None = None) -> None:
        super().__init__()
        blocks, left_over = divmod(depth - 2, 6)
        if blocks < 1 or left_over:
            raise ValueError(f"depth is {depth}: use 6n + 2 with n >= 1, such as 20, 32, 44, 56 or 110")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, stride=1)
        self.layer2 = _stage(16, 32, blocks, stride=2)
        self.layer3 = _stage(32, 64, blocks, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)
        if weights is not None:
            load_weights_(self, weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores ``[B, num_classes]``."""
        hidden = F.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        scores: Tensor = self.linear(F.adaptive_avg_pool2d(hidden, 1).flatten(1))
        return scores


class Normalized(nn.Module):
    """A network that normalises its inputs by itself, so that they lie in a known range, such as [0, 1].

    Args:
        net: takes normalised images ``[B, C, H, W]``.
        mean, std: of each channel.

    Raises:
        ValueError: means and deviations that aren't as many, or a deviation that isn't above 0.

    >>> import torch
    >>> net = Normalized(ResNetCIFAR(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    >>> net(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not len(std) or not min(std) > 0:
            raise ValueError(f"mean={mean!r}, std={std!r}: one of each a channel is needed, deviations above 0")
        self.net = net
        # not in the state: it stays that of published weights
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return what the network says of ``images``, normalised."""
        result: Tensor = self.net((images - self.mean) / self.std)
        return result


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that subsamples and pads channels with zeros."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.extra = channels_out - channels_in

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.relu(self.bn1(self.conv1(images)))
        return F.relu(self.bn2(self.conv2(hidden)) + self._shortcut(images))

    def _shortcut(self, images: Tensor) -> Tensor:
        if self.stride == 1 and self.extra == 0:
            return images
        before = self.extra // 2
        return F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before))


def _conv_bn_relu(channels_in: int, channels_out: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = _BasicBlock(channels_in, channels_out, stride)
    return nn.Sequential(first, *(_BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))
