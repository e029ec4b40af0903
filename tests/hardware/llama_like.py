"""A decoder of our own in the shape of the Llama family, and its multiply-accumulates counted by hand."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder; of each layer's heads of queries ``groups`` share their keys and values."""

    width: int
    layers: int
    heads: int
    groups: int
    hidden: int
    vocabulary: int = 32000
    fused: bool = True  # one attention kernel, or its two products
    tied: bool = False

    @property
    def shared_width(self) -> int:
        return self.width * self.groups // self.heads

    def weights(self) -> int:
        layer = 2 * self.width**2 + 2 * self.width * self.shared_width + 3 * self.width * self.hidden + 2 * self.width
        tables = self.width * self.vocabulary * (1 if self.tied else 2)
        return self.layers * layer + tables + self.width

    def macs(self, tokens: int) -> int:
        a_token = 2 * self.width**2 + 2 * self.width * self.shared_width + 3 * self.width * self.hidden
        attention = 2 * tokens * tokens * self.width  # scores and their use, the mask not taken off
        return self.layers * (tokens * a_token + attention) + tokens * self.width * self.vocabulary


TINY = Shape(width=64, layers=2, heads=8, groups=2, hidden=96, vocabulary=50)
B1 = Shape(width=2048, layers=22, heads=32, groups=4, hidden=5632)
B7 = Shape(width=4096, layers=32, heads=32, groups=8, hidden=14336)


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5).to(x.dtype) * self.weight


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape, self.size = shape, shape.width // shape.heads
        self.q, self.o = (nn.Linear(shape.width, shape.width, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(shape.width, shape.shared_width, bias=False) for _ in range(2))

    def forward(self, x, cos, sin):
        q, k, v = (layer(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        q, k = (y * cos + torch.cat((-y.chunk(2, -1)[1], y.chunk(2, -1)[0]), -1) * sin for y in (q, k))
        if self.shape.fused:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = (t.repeat_interleave(self.shape.heads // self.shape.groups, 1) for t in (k, v))
            mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), device=x.device, dtype=x.dtype).triu(1)
            y = torch.softmax(q @ k.transpose(-1, -2) / self.size**0.5 + mask, -1) @ v
        return self.o(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.norms = nn.ModuleList(RMSNorm(shape.width) for _ in range(2))
        self.attention = Attention(shape)
        self.gate, self.up = (nn.Linear(shape.width, shape.hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norms[0](x), cos, sin)
        y = self.norms[1](x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Scores of the next token, [N, T, vocabulary], of tokens [N, T]."""

    def __init__(self, shape):
        super().__init__()
        self.tokens = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm, self.head = RMSNorm(shape.width), nn.Linear(shape.width, shape.vocabulary, bias=False)
        if shape.tied:
            self.head.weight = self.tokens.weight
        size = shape.width // shape.heads
        self.register_buffer("rates", 1e4 ** (-torch.arange(0, size, 2) / size), persistent=False)

    def forward(self, tokens):
        x = self.tokens(tokens)
        angles = torch.outer(torch.arange(tokens.shape[1], device=tokens.device), self.rates).repeat(1, 2)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.head(self.norm(x))


def b1():
    return Decoder(B1)


def b7():
    return Decoder(B7)


def tied():
    return Decoder(Shape(64, 2, 8, 2, 96, vocabulary=50, tied=True))


built = tied()
