"""Small networks that hold what an integer runtime has kernels for, and some of what it has none for."""

import functools
import tempfile
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from torch import nn
from torch.nn import functional as F

from lightning_effnn import deploy


def settled(net):
    """Batch norms with statistics and gains unlike those that they start with, some of them negative."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net.eval()


class Plain(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(),
            nn.Linear(200, 16), nn.ReLU(), nn.Linear(16, 10),
        )  # fmt: skip


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(a, 8, 3, padding=1, bias=False) for a in (3, 8, 8))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = F.relu(self.norms[0](self.stem(x)))
        y = self.norms[2](self.two(F.relu(self.norms[1](self.one(x)))))
        y += F.pad(x[:, 2:6, :, :], (0, 0, 0, 0, 1, 3))
        return self.head(F.relu(y).mean((2, 3)))


class Mobile(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.deep = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, stride=2, groups=12, bias=False)
        self.narrow, self.again = nn.Conv2d(12, 6, 1, bias=False), nn.Conv2d(6, 6, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (12, 12, 6))
        self.head = nn.Linear(6, 10)

    def forward(self, x):
        x = F.relu6(self.norms[0](self.wide(x)))
        x = F.relu6(self.norms[1](self.deep(F.pad(x, (0, 1, 0, 1)))))
        x = self.norms[2](self.narrow(x))
        x = x + self.again(x)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Joined(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(3, 4, 1)
        self.squeeze, self.mix = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 10, 3)

    def forward(self, x):
        x = torch.cat((F.relu(self.left(x)), self.right(x)), 1)
        x = x * torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(x, 1)))
        return self.mix(F.hardswish(F.avg_pool2d(x, 2))).mean((2, 3))


class Attention(nn.Module):
    """Half transformer, on images read row by row."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(36, 4, 24, batch_first=True, dropout=0.0)
        self.head = nn.Linear(36, 10)

    def forward(self, x):
        return self.head(self.layer(x.movedim(1, 2).flatten(2)).mean(1))


NETWORKS = {net.__name__: net for net in (Plain, Residual, Mobile, Joined, Attention)}
CONVOLUTIONAL = [name for name in NETWORKS if name != "Attention"]
X = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Exported(NamedTuple):
    model: nn.Module
    prepared: deploy.Prepared
    path: Path
    report: deploy.ExportReport


def exported(name, bits="W8A8"):
    """A network, prepared, calibrated and written, once for all tests."""
    return _exported(name, bits)


@functools.cache
def _exported(name, bits):
    torch.manual_seed(0)
    model = settled(NETWORKS[name]())
    prepared = deploy.calibrate_(deploy.prepare(model, X, bits), X.split(20))
    path = Path(tempfile.mkdtemp()) / "net.onnx"
    return Exported(model, prepared, path, deploy.to_onnx(prepared, X[:2], path))


def apart(found, expected):
    """Root mean square of the difference, over that of what is expected."""
    return float(((found - expected).square().mean() / expected.square().mean()).sqrt())


def weights_in(path):
    """The weights that a file stores, by name."""
    tensors = {t.name: t for t in onnx.load(path).graph.initializer}
    return {name: tensor for name, tensor in tensors.items() if name.endswith("weight")}
