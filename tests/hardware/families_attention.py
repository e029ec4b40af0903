"""Families of networks with attention; sizes are such that many axes are as long as some batch is large."""

import math

import torch
import torch.nn.functional as F
from family import Family, attention_macs, copies, repeated, words
from torch import nn

T, D, H, HIDDEN = 5, 8, 2, 16
LAYER = attention_macs(T, T, D) + 2 * T * D * HIDDEN


class LearnedQueries(nn.Module):
    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, D))
        self.attend = nn.MultiheadAttention(D, H, batch_first=True)

    def forward(self, x):
        queries = self.queries.expand(len(x), -1, -1)
        return self.attend(queries, x, x, need_weights=False)[0]


class Perceiver(nn.Module):
    """Latents of the batch's size attend to the input, then to themselves, written out."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(1, 3, D))
        self.q, self.kv, self.out = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Linear(D, D)
        self.layer = nn.TransformerEncoderLayer(D, H, HIDDEN, batch_first=True)

    def forward(self, x):
        latents = self.latents.repeat(x.shape[0], 1, 1)
        keys, values = self.kv(x).chunk(2, -1)
        scores = self.q(latents) @ keys.transpose(1, 2) / math.sqrt(D)
        return self.layer(latents + self.out(scores.softmax(-1) @ values))


class PooledByAttention(nn.Module):
    """One learned query for all samples: a constant times what depends on the batch."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(D))
        self.head = nn.Linear(D, 3)

    def forward(self, x):
        weights = (x @ self.query).softmax(1)
        return self.head(torch.einsum("nt,ntd->nd", weights, x))


class Detr(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Conv2d(3, D, 4, 4)
        self.places = nn.Parameter(torch.randn(6, 1, D))
        self.queries = nn.Embedding(3, D)
        self.encoder = nn.TransformerEncoderLayer(D, H, HIDDEN)
        self.decoder = nn.TransformerDecoderLayer(D, H, HIDDEN)
        self.classes, self.boxes = nn.Linear(D, 5), nn.Linear(D, 4)

    def forward(self, images):
        found = self.backbone(images).flatten(2).permute(2, 0, 1)
        memory = self.encoder(found + self.places)
        queries = self.queries.weight.unsqueeze(1).repeat(1, images.shape[0], 1)
        out = self.decoder(torch.zeros_like(queries) + queries, memory).transpose(0, 1)
        return self.classes(out), self.boxes(out).sigmoid()


DETR = (
    6 * D * 48
    + attention_macs(6, 6, D) + 2 * 6 * D * HIDDEN
    + attention_macs(3, 3, D) + attention_macs(3, 6, D) + 2 * 3 * D * HIDDEN
    + 3 * D * 9
)  # fmt: skip


class XLNet(nn.Module):
    """Time-major inside; relative positions are expanded to the batch before they are projected."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, D)
        for name in "qkvro":
            setattr(self, name, nn.Parameter(torch.randn(D, H, D // H)))
        self.bias = nn.Parameter(torch.randn(H, D // H))

    def forward(self, ids):
        x = self.words(ids.t())
        length, size = x.shape[:2]
        angles = torch.arange(length, -length, -1.0)[:, None] / 10 ** torch.arange(0, 1, 2 / D)
        places = torch.cat([angles.sin(), angles.cos()], -1)[:, None].expand(-1, size, -1)
        q, k, v = (torch.einsum("ibh,hnd->ibnd", x, weight) for weight in (self.q, self.k, self.v))
        r = torch.einsum("ibh,hnd->ibnd", places, self.r)
        content = torch.einsum("ibnd,jbnd->bnij", q + self.bias, k)
        place = torch.einsum("ibnd,jbnd->bnij", q + self.bias, r)
        place = place.reshape(size, H, 2 * length, length)[:, :, 1:].reshape(size, H, length, 2 * length - 1)
        weights = (content + place[..., :length]).softmax(-1)
        mixed = torch.einsum("bnij,jbnd->ibnd", weights, v)
        return torch.einsum("ibnd,hnd->ibh", mixed, self.o)


XLNET = 4 * T * D * D + 2 * T * D * D + T * T * D + T * 2 * T * D + T * T * D


class Masked(nn.Module):
    def __init__(self, mask_first=False):
        super().__init__()
        self.mask_first = mask_first
        self.layer = nn.TransformerEncoderLayer(D, H, HIDDEN, batch_first=True)

    def forward(self, x, mask):
        x, mask = (mask, x) if self.mask_first else (x, mask)
        return self.layer(x, src_mask=mask)


def with_mask(n):
    return repeated(n, T, D), nn.Transformer.generate_square_subsequent_mask(T)


def with_boolean_mask(n):
    return repeated(n, T, D), torch.ones(T, T).triu(1).bool()


class Decoder(nn.Module):
    """Grouped queries: 4 heads share 2 of keys and values."""

    def __init__(self, fused):
        super().__init__()
        self.words = nn.Embedding(20, D)
        self.q, self.kv, self.out = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.gate, self.up, self.down = nn.Linear(D, HIDDEN), nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, D)
        self.head = nn.Linear(D, 20, bias=False)
        self.fused = fused

    def forward(self, ids):
        x = self.words(ids)
        size, length = ids.shape
        q = self.q(x).view(size, length, 4, 2).transpose(1, 2)
        k, v = self.kv(x).view(size, length, 2, 2, 2).permute(3, 0, 2, 1, 4)
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            k, v = (t[:, :, None].expand(size, 2, 2, length, 2).reshape(size, 4, length, 2) for t in (k, v))
            mask = torch.full((length, length), -torch.inf).triu(1)
            mixed = (q @ k.transpose(2, 3) + mask[None, None]).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(size, length, D))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))


DECODER = attention_macs(T, T, D) - T * D * D + 3 * T * D * HIDDEN + T * D * 20


class Decode(nn.Module):
    """One token more, keys and values of all before it in a cache of fixed size: an argument, or a buffer."""

    def __init__(self, n=0, length=8):
        super().__init__()
        self.words = nn.Embedding(20, D)
        self.qkv, self.out, self.head = nn.Linear(D, 3 * D), nn.Linear(D, D), nn.Linear(D, 20)
        if n:
            self.register_buffer("keys", torch.randn(n, H, length, D // H))
            self.register_buffer("values", torch.randn(n, H, length, D // H))

    def forward(self, ids, place, keys=None, values=None):
        keys, values = (self.keys, self.values) if keys is None else (keys, values)
        x = self.words(ids)
        q, k, v = self.qkv(x).view(len(ids), 1, 3, H, D // H).permute(2, 0, 3, 1, 4)
        keys.index_copy_(2, place, k)
        values.index_copy_(2, place, v)
        mask = torch.arange(keys.shape[2]) <= place
        mixed = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask[None, None, None])
        return self.head(x + self.out(mixed.transpose(1, 2).flatten(2)))


DECODE = 4 * D * D + 2 * 8 * D + D * 20


def token(n):
    return words(n, 1, 20), torch.tensor([4])


def token_and_cache(n):
    return *token(n), repeated(n, H, 8, D // H), repeated(n, H, 8, D // H)


class Swin(nn.Module):
    """Windows of 2 x 2 in front of the batch, shifted, with a bias a head and a mask a window."""

    def __init__(self, cosine=False):
        super().__init__()
        self.patches = nn.Conv2d(3, D, 2, 2)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.bias = nn.Parameter(torch.randn(9, H))
        grid = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(2), indexing="ij")).flatten(1)
        shift = (grid[:, :, None] - grid[:, None]).permute(1, 2, 0) + 1
        self.register_buffer("index", shift[..., 0] * 3 + shift[..., 1])
        self.register_buffer("mask", torch.randn(6, 4, 4))
        self.cosine = cosine
        if cosine:
            self.scale = nn.Parameter(torch.ones(H, 1, 1))
            self.table = nn.Parameter(torch.randn(9, 2), requires_grad=False)
            self.positions = nn.Sequential(nn.Linear(2, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, H, bias=False))

    def forward(self, images):
        x = self.patches(images).permute(0, 2, 3, 1)
        size, rows, columns = x.shape[:3]
        x = torch.roll(x, (-1, -1), (1, 2)).view(size, rows // 2, 2, columns // 2, 2, D)
        windows = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, D)
        q, k, v = self.qkv(windows).view(-1, 4, 3, H, D // H).permute(2, 0, 3, 1, 4)
        if self.cosine:
            scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
            scores = scores * self.scale.clamp(max=4.6).exp()
            bias = self.positions(self.table)
        else:
            scores, bias = q @ k.transpose(-2, -1), self.bias
        scores = scores + bias[self.index.view(-1)].view(4, 4, H).permute(2, 0, 1)[None]
        scores = scores.view(size, -1, H, 4, 4) + self.mask[None, :, None]
        mixed = scores.view(-1, H, 4, 4).softmax(-1) @ v
        x = self.out(mixed.transpose(1, 2).reshape(-1, 4, D)).view(size, rows // 2, columns // 2, 2, 2, D)
        return torch.roll(x.permute(0, 1, 3, 2, 4, 5).reshape(size, rows, columns, D), (1, 1), (1, 2))


SWIN = 24 * D * 12 + 6 * attention_macs(4, 4, D)


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, D, 4, 4)
        self.tokens = nn.Sequential(nn.Linear(T + 1, 3), nn.GELU(), nn.Linear(3, T + 1))
        self.channels = nn.Sequential(nn.LayerNorm(D), nn.Linear(D, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, D))

    def forward(self, images):
        x = self.patches(images).flatten(2)
        x = (x + self.tokens(x)).transpose(1, 2)
        return (x + self.channels(x)).mean(1)


class Fourier(nn.Module):
    """Axes are mixed by a discrete Fourier transform written as products with constants."""

    def __init__(self):
        super().__init__()
        self.register_buffer("over_time", torch.fft.fft(torch.eye(T)).real)
        self.register_buffer("over_width", torch.fft.fft(torch.eye(D)).real)
        self.out = nn.Linear(D, D)

    def forward(self, x):
        return self.out(torch.einsum("ntd,ts,de->nse", x, self.over_time, self.over_width))


def no_padding_mask(n):
    padding = torch.zeros(n, T, dtype=torch.bool)
    padding[:, -1] = True
    return repeated(n, T, D), None, padding


class TwoSentences(nn.Module):
    """Encoder and decoder of batches of ids, a padding mask for one and a causal one for the other."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, D)
        self.model = nn.Transformer(D, H, 1, 1, HIDDEN, batch_first=True)
        self.head = nn.Linear(D, 20)

    def forward(self, source, target, present):
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        absent = ~present.bool()
        x, y = self.words(source), self.words(target)
        out = self.model(x, y, tgt_mask=causal, src_key_padding_mask=absent, memory_key_padding_mask=absent)
        return self.head(out)


def two_sentences(n):
    return words(n, T, 20), words(n, 3, 20), torch.tensor([1, 1, 1, 1, 0]).repeat(n, 1)


TWO_SENTENCES = LAYER + attention_macs(3, 3, D) + attention_macs(3, T, D) + 2 * 3 * D * HIDDEN + 3 * D * 20


class Unpadded(nn.Module):
    """What is present is taken out of the padded batch, projected and put back, as encoders do that waste nothing."""

    def __init__(self):
        super().__init__()
        self.words, self.up, self.down = nn.Embedding(20, D), nn.Linear(D, HIDDEN), nn.Linear(HIDDEN, D)

    def forward(self, ids, mask):
        places = mask.flatten().nonzero().squeeze(1)
        present = self.words(ids.flatten()[places])
        out = torch.zeros(ids.numel(), D).index_copy(0, places, self.down(F.gelu(self.up(present))))
        return out.view(*ids.shape, D)


class Classifier(nn.Module):
    """A class token before the patches, and learned places resized to the image."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, D, 4, 4)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, D)), nn.Parameter(torch.randn(1, D, 4, 4))
        self.layer, self.head = nn.TransformerEncoderLayer(D, H, HIDDEN, batch_first=True), nn.Linear(D, 3)

    def forward(self, images):
        x = self.patches(images)
        x = x + F.interpolate(self.places, x.shape[2:], mode="bicubic")
        x = torch.cat([self.token.expand(images.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        return self.head(self.layer(x)[:, 0])


CLASSIFIER = 6 * D * 48 + attention_macs(7, 7, D) + 2 * 7 * D * HIDDEN + D * 3


FAMILIES = [
    Family("learned queries expanded to the batch", lambda n: LearnedQueries(), copies(T, D), attention_macs(3, T, D)),
    Family(
        "perceiver with repeated latents",
        lambda n: Perceiver(),
        copies(T, D),
        attention_macs(3, T, D) + attention_macs(3, 3, D) + 2 * 3 * D * HIDDEN,
    ),
    Family("pooling by one learned query", lambda n: PooledByAttention(), copies(T, D), 2 * T * D + D * 3),
    Family("detection transformer", lambda n: Detr(), copies(3, 8, 12), DETR),
    Family("relative positions, time-major inside", lambda n: XLNet(), lambda n: (words(n, T, 20),), XLNET),
    Family("causal mask as an argument", lambda n: Masked(), with_mask, LAYER),
    Family(
        "boolean causal mask before the batch",
        lambda n: Masked(mask_first=True),
        lambda n: with_boolean_mask(n)[::-1],
        LAYER,
    ),
    Family(
        "floating causal mask before the batch",
        lambda n: Masked(mask_first=True),
        lambda n: with_mask(n)[::-1],
        LAYER,
        lambda n: {"inferences": n},
    ),
    Family("grouped queries by repeating keys", lambda n: Decoder(fused=False), lambda n: (words(n, T, 20),), DECODER),
    Family("grouped queries in the fused kernel", lambda n: Decoder(fused=True), lambda n: (words(n, T, 20),), DECODER),
    Family("decoding with a cache as an argument", lambda n: Decode(), token_and_cache, DECODE),
    Family("decoding with a cache in buffers", Decode, token, DECODE),
    Family("shifted windows", lambda n: Swin(), copies(3, 8, 12), SWIN),
    Family(
        "windows with cosine attention",
        lambda n: Swin(cosine=True),
        copies(3, 8, 12),
        SWIN,  # the network that makes the biases of positions runs on constants, before deployment
    ),
    Family(
        "tokens without their padding",
        lambda n: Unpadded(),
        lambda n: (words(n, T, 20), torch.tensor([1, 1, 1, 0, 0]).repeat(n, 1)),
        3 * 2 * D * HIDDEN,
    ),
    Family("class token and resized places", lambda n: Classifier(), copies(3, 8, 12), CLASSIFIER),
    Family("mixer of patches", lambda n: Mixer(), copies(3, 8, 12), 6 * D * 48 + 2 * D * 6 * 3 + 2 * 6 * D * HIDDEN),
    Family("transform by constant matrices", lambda n: Fourier(), copies(T, D), T * T * D + 2 * T * D * D),
    Family(
        "padding mask",
        lambda n: nn.TransformerEncoderLayer(D, H, HIDDEN, batch_first=True),
        no_padding_mask,
        LAYER,
    ),
    Family("encoder and decoder of sentences", lambda n: TwoSentences(), two_sentences, TWO_SENTENCES),
    Family(
        "time-major transformer layer",
        lambda n: nn.TransformerEncoderLayer(D, H, HIDDEN),
        lambda n: (repeated(n, T, D, axis=1),),
        LAYER,
        lambda n: {"batch_dim": 1},
    ),
]
