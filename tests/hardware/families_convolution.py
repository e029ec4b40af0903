"""Families of convolutional networks; sizes are such that many axes are as long as some batch is large."""

import torch
import torch.nn.functional as F
from family import Family, copies, repeated
from torch import nn

IMAGE = (3, 8, 8)
C = 8


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(C, 5, 3, 2, 1)
        self.up, self.leave = nn.ConvTranspose2d(5, C, 2, 2), nn.Conv2d(2 * C, 3, 1)

    def forward(self, images):
        skip = F.relu(self.enter(images))
        return self.leave(torch.cat([self.up(F.relu(self.down(skip))), skip], 1))


UNET = 64 * C * 27 + 16 * 5 * C * 9 + 16 * 5 * C * 4 + 64 * 2 * C * 3


class Excited(nn.Module):
    """Squeeze and excitation between two convolutions with batch norms."""

    def __init__(self):
        super().__init__()
        self.enter, self.norm = nn.Conv2d(3, C, 3, padding=1, bias=False), nn.BatchNorm2d(C)
        self.squeeze, self.excite = nn.Conv2d(C, 2, 1), nn.Conv2d(2, C, 1)
        self.leave = nn.Conv2d(C, 5, 1)

    def forward(self, images):
        x = F.silu(self.norm(self.enter(images)))
        return self.leave(x * self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid())


def separable():
    return nn.Sequential(
        nn.Conv2d(3, C, 1, bias=False), nn.BatchNorm2d(C), nn.ReLU6(),
        nn.Conv2d(C, C, 3, 1, 1, groups=C, bias=False), nn.BatchNorm2d(C), nn.ReLU6(),
        nn.Conv2d(C, 5, 1, bias=False), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3),
    )  # fmt: skip


def normed():
    return nn.Sequential(
        nn.Conv2d(3, C, 3, padding=1), nn.GroupNorm(2, C), nn.ReLU(),
        nn.Conv2d(C, C, 3, padding=1), nn.InstanceNorm2d(C, affine=True), nn.ReLU(), nn.Conv2d(C, 3, 1),
    )  # fmt: skip


class Unfolded(nn.Module):
    """A convolution as columns, a product with a constant, and columns back into an image."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, 27))

    def forward(self, images):
        columns = F.unfold(images, 3, padding=1, stride=2)
        return F.fold(self.weight @ columns, (8, 8), 2, stride=2)


class OwnConvolution(nn.Module):
    """Each sample makes the weights of its convolution: samples become groups."""

    def __init__(self):
        super().__init__()
        self.make = nn.Linear(3, 5 * 3 * 9)

    def forward(self, images):
        size = images.shape[0]
        weight = self.make(images.mean((2, 3))).view(size * 5, 3, 3, 3)
        return F.conv2d(images.reshape(1, size * 3, 8, 8), weight, padding=1, groups=size).view(size, 5, 8, 8)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.code = nn.Conv2d(3, C, 4, 4), nn.Linear(C * 4, 2 * 5)
        self.start, self.decode = nn.Linear(5, C * 4), nn.ConvTranspose2d(C, 3, 4, 4)

    def forward(self, images):
        mean, deviation = self.code(torch.tanh(self.encode(images)).flatten(1)).chunk(2, 1)
        code = mean + torch.randn(images.shape[0], 5) * torch.exp(deviation)
        return self.decode(torch.tanh(self.start(code)).view(-1, C, 2, 2))


AUTOENCODER = 2 * 4 * C * 48 + C * 4 * 10 + 5 * C * 4


class ImageList(nn.Module):
    """A list of images, as detectors take it: stacked, or one after another."""

    def __init__(self, loop):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, C, 3, 2, 1), nn.ReLU(), nn.Conv2d(C, 5, 3, 2, 1))
        self.head = nn.Linear(5, 3)
        self.loop = loop

    def forward(self, images):
        if self.loop:
            return [self.head(self.net(image[None]).mean((2, 3))) for image in images]
        return self.head(self.net(torch.stack(images)).mean((2, 3)))


IMAGE_LIST = 16 * C * 27 + 4 * 5 * C * 9 + 5 * 3


def image_list(n):
    return (list(repeated(n, *IMAGE)),)


class Video(nn.Module):
    """Frames are put into the batch for a 2-D network and taken out for a 1-D one."""

    def __init__(self):
        super().__init__()
        self.frame, self.time = nn.Conv2d(3, C, 4, 4), nn.Conv1d(C, 5, 3, padding=1)

    def forward(self, video):
        size, length = video.shape[:2]
        x = self.frame(video.flatten(0, 1)).mean((2, 3))
        return self.time(x.view(size, length, C).transpose(1, 2))


class Siamese(nn.Module):
    """Both images of a pair go through one network in one batch of twice the size."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, C, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * C, 5))

    def forward(self, one, other):
        first, second = self.net(torch.cat([one, other])).chunk(2)
        return F.cosine_similarity(first, second)


class Guided(nn.Module):
    """A step of a diffusion model with a time for all samples, run with and without its condition at once."""

    def __init__(self):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, C), nn.SiLU(), nn.Linear(C, C))
        self.none, self.condition = nn.Parameter(torch.zeros(1, 5)), nn.Linear(5, C)
        self.enter, self.leave = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(C, 3, 3, padding=1)

    def forward(self, images, time, condition):
        both = torch.cat([images, images])
        condition = torch.cat([condition, self.none.expand(len(images), -1)])
        frequencies = torch.exp(-torch.arange(4) / 4.0)
        angles = time.expand(len(both))[:, None] * frequencies[None]
        shift = self.time(torch.cat([angles.sin(), angles.cos()], 1)) + self.condition(condition)
        with_it, without = self.leave(F.silu(self.enter(both) + shift[:, :, None, None])).chunk(2)
        return without + 3 * (with_it - without)


GUIDED = 2 * (8 * C + C * C + 5 * C + 2 * 64 * C * 27)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, C, 2, 2), nn.Conv2d(C, C, 7, padding=3, groups=C)
        self.norm, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.scale = nn.Parameter(torch.ones(C))

    def forward(self, images):
        x = self.patches(images)
        y = self.down(F.gelu(self.up(self.norm(self.mix(x).permute(0, 2, 3, 1)))))
        return x + (self.scale * y).permute(0, 3, 1, 2)


class Codebook(nn.Module):
    """Each place takes the nearest of 5 constants, by the distances written out as a product."""

    def __init__(self):
        super().__init__()
        self.encode, self.codes = nn.Conv2d(3, C, 4, 4), nn.Embedding(5, C)
        self.decode = nn.ConvTranspose2d(C, 3, 4, 4)

    def forward(self, images):
        x = self.encode(images).permute(0, 2, 3, 1)
        flat = x.reshape(-1, C)
        codes = self.codes.weight
        distances = flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.t()
        return self.decode(self.codes(distances.argmin(1)).view_as(x).permute(0, 3, 1, 2))


FAMILIES = [
    Family("transposed convolutions and skips", lambda n: UNet(), copies(*IMAGE), UNET),
    Family(
        "squeeze and excitation with batch norm",
        lambda n: Excited(),
        copies(*IMAGE),
        64 * C * 27 + 2 * C * 2 + 64 * C * 5,
    ),
    Family(
        "depthwise separable convolutions",
        lambda n: separable(),
        copies(*IMAGE),
        64 * (3 * C + 9 * C + C * 5) + 15,
    ),
    Family("group and instance norm", lambda n: normed(), copies(*IMAGE), 64 * (27 * C + 9 * C * C + C * 3)),
    Family("columns and back", lambda n: Unfolded(), copies(*IMAGE), 16 * 12 * 27),
    Family(
        "a convolution made for each sample",
        lambda n: OwnConvolution(),
        copies(*IMAGE),
        3 * 5 * 27 + 64 * 5 * 27,
    ),
    Family("variational autoencoder", lambda n: Autoencoder(), copies(*IMAGE), AUTOENCODER),
    Family(
        "list of images that are stacked",
        lambda n: ImageList(False),
        image_list,
        IMAGE_LIST,
        lambda n: {"inferences": n},
    ),
    Family(
        "list of images, one by one", lambda n: ImageList(True), image_list, IMAGE_LIST, lambda n: {"inferences": n}
    ),
    Family("frames of a video in the batch", lambda n: Video(), copies(5, *IMAGE), 5 * 4 * C * 48 + 5 * 5 * C * 3),
    Family(
        "pairs in a batch of twice the size",
        lambda n: Siamese(),
        lambda n: (repeated(n, *IMAGE), repeated(n, *IMAGE).flip(3)),
        2 * (4 * C * 48 + 4 * C * 5),
    ),
    Family(
        "guidance in a batch of twice the size",
        lambda n: Guided(),
        lambda n: (repeated(n, *IMAGE), torch.tensor(3.0), repeated(n, 5)),
        GUIDED,
    ),
    Family("channels last in between", lambda n: ConvNeXt(), copies(*IMAGE), 16 * (12 * C + 49 * C + 8 * C * C)),
    Family("nearest code", lambda n: Codebook(), copies(*IMAGE), 2 * 4 * C * 48 + 4 * 5 * C),
]
