"""Families in which positions, masks, caches and other things made from sizes and constants meet the batch."""

import math

import torch
import torch.nn.functional as F
from family import Family, attention_macs, copies, repeated, words
from torch import nn

T, D, H = 6, 8, 2


class FourierMixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, x):
        return self.out(self.norm(x + torch.fft.fftn(x, dim=(1, 2)).real))


class ComplexRotary(nn.Module):
    """Queries and keys are turned as complex numbers."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def turned(self, x):
        angles = torch.outer(torch.arange(x.shape[2]), 10.0 ** -torch.arange(2))
        turns = torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(3)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, H, D // H)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class MultiQuery(nn.Module):
    """Four heads of queries, one of keys and values, joined to a cache that is empty."""

    def __init__(self):
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(D, D), nn.Linear(D, 4), nn.Linear(D, D)

    def forward(self, x):
        q = self.q(x).unflatten(2, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (1, 4)).transpose(1, 2).chunk(2, -1)
        k, v = (torch.cat([torch.tensor([]), new], -2) for new in (k, v))
        weights = (q @ k.transpose(2, 3) / math.sqrt(2)).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


MULTI_QUERY = 2 * T * D * D + T * D * 4 + 2 * T * T * D


class Embeddings(nn.Module):
    """Words, and kinds and places that are buffers of one row, expanded to the batch before they are looked up."""

    def __init__(self):
        super().__init__()
        self.words, self.kinds, self.places = nn.Embedding(20, D), nn.Embedding(2, D), nn.Embedding(16, D)
        self.register_buffer("kind", torch.zeros(1, 16, dtype=torch.long))
        self.register_buffer("place", torch.arange(16)[None])
        self.norm, self.out = nn.LayerNorm(D), nn.Linear(D, D)

    def forward(self, ids):
        place = self.place[:, : ids.shape[1]]
        kind = self.kind.expand(ids.shape[0], -1).gather(1, place.expand(ids.shape[0], -1))
        return self.out(self.norm(self.words(ids) + self.kinds(kind) + self.places(place)))


class SinesOfMask(nn.Module):
    """Sines of the places that a mask of ones of the batch's size counts, projected like features."""

    def __init__(self):
        super().__init__()
        self.patches, self.project = nn.Conv2d(3, D, 4, 4), nn.Conv2d(8, D, 1)

    def forward(self, images):
        x = self.patches(images)
        mask = torch.ones((x.shape[0], *x.shape[2:]))
        parts = []
        for axis in (1, 2):
            angles = mask.cumsum(axis)[..., None] / 10.0 ** torch.arange(2)
            parts += [angles.sin(), angles.cos()]
        return self.project(torch.cat(parts, -1).permute(0, 3, 1, 2)) + x


class SinesOnce(nn.Module):
    """The same for one image, projected and then repeated: a constant."""

    def __init__(self):
        super().__init__()
        self.patches, self.project = nn.Conv2d(3, D, 4, 4), nn.Conv2d(4, D, 1)

    def forward(self, images):
        x = self.patches(images)
        rows = torch.arange(1.0, x.shape[2] + 1)[:, None].repeat(1, 1, x.shape[3])
        angles = rows[..., None] / 10.0 ** torch.arange(2)
        places = torch.stack((angles.sin(), angles.cos()), 4).flatten(3).permute(0, 3, 1, 2)
        return x + self.project(places).repeat(x.shape[0], 1, 1, 1)


class Downsampled(nn.Module):
    """A kernel for all channels is written into zeros on the diagonal of a dense convolution."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8)
        self.enter = nn.Conv1d(3, D, 1)

    def forward(self, x):
        x = F.pad(self.enter(x), (1, 1))
        weight = x.new_zeros([x.shape[1], x.shape[1], self.kernel.shape[0]])
        channels = torch.arange(x.shape[1])
        weight[channels, channels] = self.kernel[None].expand(x.shape[1], -1)
        return F.conv1d(x, weight, stride=2)


class Inserted(nn.Module):
    """Features of an image take the places of special words."""

    def __init__(self):
        super().__init__()
        self.words, self.patches, self.out = nn.Embedding(20, D), nn.Conv2d(3, D, 4, 4), nn.Linear(D, D)

    def forward(self, ids, images):
        features = self.patches(images).flatten(2).transpose(1, 2)
        x = self.words(ids)
        special = (ids == 19).unsqueeze(-1).expand_as(x)
        return self.out(x.masked_scatter(special, features))


def with_special_words(n):
    return torch.cat([torch.full((n, 4), 19), words(n, 3, 18)], 1), repeated(n, 3, 8, 8)


class Chunked(nn.Module):
    """Attention within overlapping chunks of 4 out of 8 places, made by strides."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)

    def chunks(self, x):
        rows, length, width = x.shape
        x = x.contiguous()
        return x.as_strided((rows, length // 2 - 1, 4, width), (length * width, 2 * width, width, 1))

    def forward(self, x):
        parts = self.qkv(x).unflatten(2, (3, H, D // H)).permute(2, 0, 3, 1, 4).flatten(1, 2)
        q, k, v = (self.chunks(part) for part in parts)
        scores = torch.einsum("bcxd,bcyd->bcxy", q, k)
        corner = scores.new_ones(2, 3).tril().flip(0)[None, None].expand(*scores.shape[:2], 2, 3)
        scores[:, :, :2, :3] = torch.full_like(corner, -9.0).where(corner.bool(), scores[:, :, :2, :3])
        weights = scores.softmax(-1)
        return torch.einsum("bcxy,bcyd->bcxd", weights, v)


class Buckets(nn.Module):
    """Scores of each distance from a projection of the features, taken by distances repeated to the batch."""

    def __init__(self):
        super().__init__()
        self.scores, self.values = nn.Linear(D, 5), nn.Linear(D, D)

    def forward(self, x):
        size, length = x.shape[:2]
        places = torch.arange(length)
        distance = (places[None] - places[:, None]).clamp(-2, 2)[None].repeat(size, 1, 1) + 2
        weights = self.scores(x).gather(2, distance).softmax(-1)
        return weights @ self.values(x)


class Checked(nn.Module):
    """A mask of integers is made one of booleans, left out where nothing is masked, and taken sample by sample."""

    def __init__(self, indexed):
        super().__init__()
        self.indexed = indexed
        self.words, self.qkv, self.out = nn.Embedding(20, D), nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, ids, mask):
        allowed = mask.to(torch.bool)
        if self.indexed:
            places = torch.arange(T)
            earlier = places[None, None, None] <= places[None, None, :, None]
            allowed = earlier & allowed[torch.arange(len(ids))[:, None, None, None], places[None, None, None]]
        else:
            allowed = None if allowed.all() else allowed[:, None, None, :].expand(-1, 1, T, -1)
        q, k, v = self.qkv(self.words(ids)).unflatten(2, (3, H, D // H)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, allowed).transpose(1, 2).flatten(2))


def padded(n):
    return words(n, T, 20), torch.tensor([1] * (T - 2) + [0] * 2).repeat(n, 1)


class TwoInputs(nn.Module):
    """Images first, then words, of which the first is written over; as many words as some batch is large."""

    def __init__(self):
        super().__init__()
        self.patches, self.words, self.out = nn.Conv2d(3, D, 4, 4), nn.Embedding(20, D), nn.Linear(D, 20)
        self.attend = nn.MultiheadAttention(D, H, batch_first=True)

    def forward(self, images, ids):
        features = self.patches(images).flatten(2).transpose(1, 2)
        ids[:, 0] = 1
        x = self.words(ids)
        return self.out(x + self.attend(x, features, features, need_weights=False)[0])


class Bordered(nn.Module):
    """A mask of all pairs of words but the first, made from the features' length and padded."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, x):
        inner = x.shape[1] - 1
        allowed = F.pad(x.new_ones([inner, inner]), (1, 0, 1, 0))
        scores = torch.einsum("bid,bjd->bij", self.q(x), self.k(x)) * allowed
        return torch.einsum("bij,bjd->bid", scores.softmax(-1), self.v(x))


class Boxes(nn.Module):
    """Boxes of five queries, repeated to the batch; sines of their centres become the queries' places."""

    def __init__(self):
        super().__init__()
        self.boxes, self.places = nn.Embedding(5, 4), nn.Linear(8, D)
        self.attend, self.move = nn.MultiheadAttention(D, H, batch_first=True), nn.Linear(D, 4)

    def forward(self, x):
        boxes = self.boxes.weight.unsqueeze(0).repeat(x.shape[0], 1, 1).sigmoid()
        angles = boxes[..., :2, None] * 6.3 / 10.0 ** torch.arange(2)
        places = torch.stack((angles.sin(), angles.cos()), -1).flatten(2)
        return boxes + self.move(self.attend(self.places(places), x, x, need_weights=False)[0]).tanh()


class Deformable(nn.Module):
    """Points on a grid made from sizes, as shares of what is valid, moved by each place's own offsets."""

    def __init__(self):
        super().__init__()
        self.patches, self.offsets, self.out = nn.Conv2d(3, D, 2, 2), nn.Linear(D, 2), nn.Linear(D, D)

    def forward(self, images):
        x = self.patches(images)
        size, _, rows, columns = x.shape
        valid = torch.ones(size, 2)
        y, z = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
        points = torch.stack((z, y), -1)[None] * valid[:, None, None]
        points = points + self.offsets(x.permute(0, 2, 3, 1)).tanh()
        return self.out(F.grid_sample(x, points, align_corners=False).permute(0, 2, 3, 1))


class AxesApart(nn.Module):
    """Scores of rows and of columns from tables that are indexed by distances; as in segmentation models."""

    def __init__(self):
        super().__init__()
        self.qkv, self.rows, self.columns = (
            nn.Linear(D, 3 * D),
            *(nn.Parameter(torch.randn(2 * i - 1, D)) for i in (2, 3)),
        )

    def table(self, table, length):
        places = torch.arange(length) * 1.0
        return table[(places[:, None] - places[None] + length - 1).long()]

    def forward(self, x):  # [N, 2, 3, D]
        size = len(x)
        q, k, v = self.qkv(x).chunk(3, -1)
        flat = [part.reshape(size, 6, D) for part in (q, k, v)]
        scores = (flat[0] @ flat[1].transpose(1, 2)).view(size, 2, 3, 2, 3)
        scores = scores + torch.einsum("bhwc,hkc->bhwk", q, self.table(self.rows, 2))[..., None]
        scores = scores + torch.einsum("bhwc,wkc->bhwk", q, self.table(self.columns, 3))[:, :, :, None]
        return scores.view(size, 6, 6).softmax(-1) @ flat[2]


AXES_APART = 6 * 3 * D * D + 2 * 6 * 6 * D + 6 * 2 * D + 6 * 3 * D

FAMILIES = [
    Family("Fourier transform", lambda n: FourierMixed(), copies(T, D), T * D * D),
    Family("complex rotary positions", lambda n: ComplexRotary(), copies(T, D), attention_macs(T, T, D)),
    Family("one head of keys, joined to an empty cache", lambda n: MultiQuery(), copies(T, D), MULTI_QUERY),
    Family("kinds and places expanded", lambda n: Embeddings(), lambda n: (words(n, T, 20),), T * D * D),
    Family("sines of a mask of ones", lambda n: SinesOfMask(), copies(3, 8, 12), 6 * D * 48 + 6 * 8 * D),
    Family("sines made once", lambda n: SinesOnce(), copies(3, 8, 12), 6 * D * 48),
    Family("kernel on the diagonal", lambda n: Downsampled(), copies(3, 8), 8 * 3 * D + 4 * D * D * 4),
    Family("features at special words", lambda n: Inserted(), with_special_words, 4 * D * 48 + 7 * D * D),
    Family("overlapping chunks", lambda n: Chunked(), copies(8, D), 8 * 3 * D * D + 2 * 3 * 4 * 4 * D),
    Family("scores by distance", lambda n: Buckets(), copies(T, D), T * D * 5 + T * D * D + T * T * D),
    Family("padding mask that is looked at", lambda n: Checked(indexed=False), padded, attention_macs(T, T, D)),
    Family("padding mask by index", lambda n: Checked(indexed=True), padded, attention_macs(T, T, D)),
    Family(
        "images and words, written over",
        lambda n: TwoInputs(),
        lambda n: (repeated(n, 3, 8, 8), words(n, 8, 20)),
        4 * D * 48 + attention_macs(8, 4, D) + 8 * D * 20,
    ),
    Family("border of a mask from sizes", lambda n: Bordered(), copies(T, D), 3 * T * D * D + 2 * T * T * D),
    Family("boxes repeated", lambda n: Boxes(), copies(T, D), 5 * 8 * D + attention_macs(5, T, D) + 5 * D * 4),
    Family("points moved on a grid", lambda n: Deformable(), copies(3, 8, 12), 24 * (D * 12 + D * 2 + D * D)),
    Family("rows and columns apart", lambda n: AxesApart(), copies(2, 3, D), AXES_APART),
]
