"""Networks and questions that several files of tests use."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_effnn.quantization import find_weights_, weight_sites

TOKENS = torch.randint(0, 50, (2, 16))


class Tied(nn.Module):
    """An embedding, and a head with the same weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


class Projection(nn.Module):
    """As in GPT-2: the weight is [in, out]."""

    def __init__(self, columns, rows):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns) * 0.02)
        self.bias = nn.Parameter(torch.zeros(columns))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


Conv1D = type("Conv1D", (Projection,), {})


class Block(nn.Module):
    def __init__(self, linear, width=32, heads=4):
        super().__init__()
        self.ln, self.heads = nn.LayerNorm(width), heads
        self.c_attn, self.c_proj = linear(3 * width, width), linear(width, width)
        self.c_fc, self.c_out = linear(4 * width, width), linear(width, 4 * width)

    def forward(self, x):
        q, k, v = self.c_attn(self.ln(x)).split(x.shape[-1], dim=2)
        q, k, v = (t.view(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(x.shape)
        x = x + self.c_proj(y)
        return x + self.c_out(F.gelu(self.c_fc(x)))


class Language(nn.Module):
    """A small GPT-2, whose head is tied to its table of tokens."""

    def __init__(self, linear=Conv1D, width=32):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50, width), nn.Embedding(16, width)
        self.blocks = nn.ModuleList(Block(linear, width) for _ in range(2))
        self.head = nn.Linear(width, 50, bias=False)
        self.head.weight = self.wte.weight

    def forward(self, tokens):
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w, self.bias)


def found(model, *inputs):
    selection = find_weights_(model, *inputs)
    return {site.name: site.axis for site in selection.sites}


def weight_sites_after(model, *inputs):
    find_weights_(model, *inputs)
    return weight_sites(model)
