"""Families in which rows are looked up, put together, repeated or looked at in parts, with extents that coincide."""

import math

import torch
import torch.nn.functional as F
from family import Family, attention_macs, copies, repeated, words
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

T, D, H = 6, 8, 2


class CountedPlaces(nn.Module):
    """Places counted in a mask made for the batch, as high and wide as one of the batches, flattened and added."""

    def __init__(self):
        super().__init__()
        self.patches, self.project, self.out = nn.Conv2d(3, D, 4, 4), nn.Conv2d(2, D, 1), nn.Linear(D, D)

    def forward(self, images):
        x = self.patches(images)
        mask = torch.ones(len(x), *x.shape[2:])
        places = self.project(torch.stack([mask.cumsum(1), mask.cumsum(2)], 1))
        return self.out((x + places).flatten(2).transpose(1, 2))


class RelativePlaces(nn.Module):
    """A table of distances of three numbers each, made while it runs, expanded to the batch and projected to heads."""

    def __init__(self):
        super().__init__()
        self.heads, self.v = nn.Linear(3, H), nn.Linear(D, D)

    def forward(self, x):
        steps = torch.arange(x.shape[1], dtype=torch.float32)
        table = torch.zeros(1, len(steps), len(steps), 3)
        table[0, :, :, 0] = steps[None] - steps[:, None]
        table[0, :, :, 1] = table[0, :, :, 0] ** 2
        weights = self.heads(table.expand(len(x), -1, -1, -1)).permute(0, 3, 1, 2).softmax(-1)
        values = self.v(x).unflatten(2, (H, -1)).transpose(1, 2)
        return (weights @ values).transpose(1, 2).flatten(2)


class Buckets(nn.Module):
    """Scores of eight distances, of which a table repeated for batch and heads picks one for each pair."""

    def __init__(self):
        super().__init__()
        self.scores, self.out = nn.Linear(D, H * 8), nn.Linear(T, D)

    def forward(self, x):
        n, length = x.shape[:2]
        scores = self.scores(x).unflatten(2, (H, 8)).transpose(1, 2).reshape(-1, 8)
        steps = torch.arange(length)
        table = (steps[None] - steps[:, None]).abs()[None].repeat(n, H, 1).reshape(-1, length)
        return self.out(scores.gather(1, table).view(n, H, length, length).sum(1))


class ImagesInText(nn.Module):
    """Features of images, in one part a sample, put where the text holds a mark for them."""

    def __init__(self):
        super().__init__()
        self.words, self.patches, self.out = nn.Embedding(20, D), nn.Conv2d(3, D, 4, 4), nn.Linear(D, D)

    def forward(self, ids, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        parts = patches.flatten(0, 1).split([patches.shape[1]] * len(images))
        x = self.words(ids)
        return self.out(x.masked_scatter((ids == 19)[:, :, None], torch.cat(parts)))


class QueriesOfPlaces(nn.Module):
    """Five queries whose places are repeated to the batch, and whose contents start as zeros."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.rand(5, 4))
        self.head, self.scale = nn.Linear(16, D), nn.Linear(D, 1)
        self.attend = nn.MultiheadAttention(D, H, batch_first=True)

    def forward(self, x):
        places = self.places[None].repeat(len(x), 1, 1)
        contents = torch.zeros(len(x), 5, D)
        waves = torch.cat([places.sin(), places.cos(), (2 * places).sin(), (2 * places).cos()], -1)
        queries = contents + self.head(waves) * (self.scale(contents).sigmoid() / places[..., :1])
        return self.attend(queries, x, x)[0]


class NormedQueries(nn.Module):
    """Queries repeated behind their own axis, normed, and used both as they are and with the batch in front."""

    def __init__(self):
        super().__init__()
        self.queries, self.norm = nn.Parameter(torch.rand(5, D)), nn.LayerNorm(D)
        self.one, self.two = nn.Linear(D, 4), nn.Linear(D, D)

    def forward(self, x):
        queries = self.norm(self.queries[:, None].repeat(1, len(x), 1))
        return self.one(queries).transpose(0, 1).sum(1) + (self.two(queries.transpose(0, 1)) @ x.transpose(1, 2)).sum()


class Frequencies(nn.Module):
    """A time that all samples share, as waves of fixed frequencies, repeated to length and batch."""

    def __init__(self):
        super().__init__()
        self.frequencies = nn.Parameter(torch.rand(4), requires_grad=False)
        self.out = nn.Conv1d(3 + 8, D, 1)

    def forward(self, x):
        angles = torch.full((1,), 0.3)[:, None] * self.frequencies[None] * 2 * math.pi
        waves = torch.cat([angles.sin(), angles.cos()], -1)[..., None].repeat(1, 1, x.shape[2])
        return self.out(torch.cat([x, waves.expand(len(x), -1, -1)], 1))


class SampledKeys(nn.Module):
    """The queries that stand out by eight keys drawn at random attend, the others take the mean."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)

    def forward(self, x):
        q, k, v = (t.unflatten(2, (H, -1)).transpose(1, 2).flatten(0, 1) for t in self.qkv(x).chunk(3, -1))
        drawn = k[:, torch.randint(k.shape[1], (8,)), :]
        top = (q @ drawn.transpose(1, 2)).amax(-1).topk(2, sorted=False).indices
        rows = torch.arange(len(q))[:, None]
        mixed = (q[rows, top] @ k.transpose(1, 2)).softmax(-1) @ v
        context = v.mean(1, keepdim=True).expand_as(q).clone()
        context[rows, top] = mixed
        return context.unflatten(0, (len(x), H)).transpose(1, 2).flatten(2)


class Windows(nn.Module):
    """Attention to the step itself and its two neighbours, written into a band as wide as three."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(D, D) for _ in range(3))

    def forward(self, x):
        q, k, v = self.q(x), F.pad(self.k(x), (0, 0, 1, 1)), F.pad(self.v(x), (0, 0, 1, 1))
        steps = x.shape[1]
        inside = torch.ones(len(x), steps)
        band = x.new_empty(len(x), steps, 3)
        for d in range(3):
            band[:, :, d] = (q * k[:, d : d + steps]).sum(-1) + F.pad(inside, (1, 1))[:, d : d + steps].log().clamp(-9)
        return (band.softmax(-1)[..., None] * v.unfold(1, 3, 1).transpose(2, 3)).sum(2)


class LastStep(nn.Module):
    """A head on what a recurrent layer says at last, and one on its mean."""

    def __init__(self):
        super().__init__()
        self.gru, self.last, self.mean = nn.GRU(4, D, batch_first=True), nn.Linear(D, 50), nn.Linear(D, 3)

    def forward(self, x):
        steps = self.gru(x)[0]
        return self.last(steps[:, -1]), self.mean(steps.mean(1))


class SensorsInARow(nn.Module):
    """Each of five sensors' steps through one recurrent layer, batch and sensors as one axis."""

    def __init__(self):
        super().__init__()
        self.gru, self.cell = nn.GRU(4, D, batch_first=True), nn.GRUCell(D, D)

    def forward(self, x):
        last = self.gru(x.flatten(0, 1))[0][:, -1]
        return self.cell(last, torch.zeros(len(last), D)).unflatten(0, (len(x), -1))


class Views(nn.Module):
    """Two views side by side through one network, of which only the first is looked at further."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(D, D), nn.Linear(D, 50)

    def forward(self, x):
        one, two = self.body(torch.cat([x, 2 * x])).chunk(2)
        return self.head(one), x - (one + 3 * (two - one))


class Arguments(nn.Module):
    """Takes however many inputs there are."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, D)

    def forward(self, *inputs):
        return sum(self.a(x) for x in inputs)


class Packed(nn.Module):
    """Sequences whose lengths are a list, packed in the order of these lengths for a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.embed, self.rnn = nn.Linear(4, D), nn.LSTM(D, D, batch_first=True)

    def forward(self, x):
        packed = pack_padded_sequence(self.embed(x), [T] * len(x), batch_first=True, enforce_sorted=False)
        return self.rnn(packed)[1][0]


class Reordered(nn.Module):
    """Samples put in another order by numbers that no tensor of the batch gave, and looked up like rows of a table."""

    def __init__(self, looks_up):
        super().__init__()
        self.looks_up, self.a, self.b = looks_up, nn.Linear(D, D), nn.Linear(D, 16)

    def forward(self, x):
        x, order = self.a(x), torch.tensor([*reversed(range(len(x)))])
        return self.b(self.looks_up(x, order))


def text_with_images(n):
    ids = words(n, T, 19).clone()
    ids[:, 1:5] = 19
    return ids, repeated(n, 3, 8, 8)


RELATIVE = T * T * 3 * H + T * D * D + T * T * D
PLACED = 5 * (16 * D + D) + attention_macs(5, T, D)
SAMPLED = 8 * D * 3 * D + 8 * 8 * D + 2 * 2 * 8 * D

GRU = 6 * 3 * D * (4 + D)  # of six steps of four features

FAMILIES = [
    Family("head on the last step", lambda n: LastStep(), copies(6, 4), GRU + D * 50 + D * 3),
    Family("sensors in a row", lambda n: SensorsInARow(), copies(5, 6, 4), 5 * (GRU + 3 * D * 2 * D)),
    Family("two views side by side", lambda n: Views(), copies(D), 2 * D * D + D * 50),
    Family("any number of arguments", lambda n: Arguments(), copies(5, 4), 5 * 4 * D),
    Family("places counted in a mask", lambda n: CountedPlaces(), copies(3, 32, 32), 64 * (D * 48 + 2 * D + D * D)),
    Family("distances expanded to the batch", lambda n: RelativePlaces(), copies(T, D), RELATIVE),
    Family("distances picked by a repeated table", lambda n: Buckets(), copies(T, D), T * D * H * 8 + T * T * D),
    Family("images put into text", lambda n: ImagesInText(), text_with_images, 4 * D * 48 + T * D * D),
    Family("queries by their places", lambda n: QueriesOfPlaces(), copies(T, D), PLACED),
    Family("normed queries", lambda n: NormedQueries(), copies(T, D), 5 * D * 4 + 5 * D * D + 5 * T * D),
    Family("one time for all samples", lambda n: Frequencies(), copies(3, 7), 7 * 11 * D),
    Family("keys drawn at random", lambda n: SampledKeys(), copies(8, D), SAMPLED),
    Family("packed sequences", lambda n: Packed(), copies(T, 4), T * D * 4 + 8 * T * D * D),
    Family("samples in another order", lambda n: Reordered(lambda x, i: x.index_select(0, i)), copies(D), 3 * D * D),
    Family("samples as rows of a table", lambda n: Reordered(lambda x, i: F.embedding(i, x)), copies(D), 3 * D * D),
    Family("attention to neighbours", lambda n: Windows(), copies(T, D), 3 * T * D * D),
]
