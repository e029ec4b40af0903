"""Families that are neither attention nor convolution: recurrence, graphs, experts, what is done to weights."""

import torch
import torch.nn.functional as F
from family import Family, copies, repeated, words
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

T, D, H = 5, 8, 3
EDGES = torch.tensor([[0, 1, 2, 3, 4, 0, 2, 4], [1, 2, 3, 4, 0, 2, 4, 1]])
NODES = 5


class Routed(nn.Module):
    """Two of five experts for each token, one expert after another, as language models run them."""

    def __init__(self):
        super().__init__()
        self.words, self.router = nn.Embedding(20, D), nn.Linear(D, 5, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(D, 16, bias=False), nn.SiLU(), nn.Linear(16, D, bias=False)) for _ in range(5)
        )
        self.head = nn.Linear(D, 20)

    def forward(self, ids):
        x = self.words(ids).view(-1, D)
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        mask = F.one_hot(chosen, 5).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for expert, where in zip(self.experts, mask, strict=True):
            place, token = torch.where(where)
            out.index_add_(0, token, expert(x[token]) * weights[token, place, None])
        return self.head(out.view(*ids.shape, D))


ROUTED = T * D * 5 + T * 2 * 2 * D * 16 + T * D * 20


class AllExperts(nn.Module):
    """Weights of all experts in one tensor; each token goes through all, a gate adds them up."""

    def __init__(self, expanded):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, D, 16)), nn.Parameter(torch.randn(3, 16, D))
        self.gate = nn.Linear(D, 3)
        self.expanded = expanded

    def forward(self, x):
        gates = self.gate(x).softmax(-1)
        if self.expanded:
            flat = x.reshape(1, -1, D).expand(3, -1, -1)
            out = torch.bmm(torch.bmm(flat, self.up).relu(), self.down).view(3, *x.shape)
            return (out * gates.permute(2, 0, 1)[..., None]).sum(0)
        hidden = torch.einsum("ntd,edf->entf", x, self.up).relu()
        return (torch.einsum("entf,efd->entd", hidden, self.down) * gates.permute(2, 0, 1)[..., None]).sum(0)


ALL_EXPERTS = T * D * 3 + 3 * 2 * T * D * 16


class OfEachChannel(nn.Module):
    """A linear layer over time for each channel, results written into zeros made for them."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(T, 4) for _ in range(H))

    def forward(self, x):
        out = torch.zeros(x.shape[0], 4, H, dtype=x.dtype)
        for i, layer in enumerate(self.layers):
            out[:, :, i] = layer(x[:, :, i])
        return out


class Stacked(nn.Module):
    """The same as one product of stacks."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(H, T, 4))

    def forward(self, x):
        return torch.einsum("ntc,cth->nhc", x, self.weight)


class Recurrent(nn.Module):
    """A torch layer, the batch first or second, and a head on its last step."""

    def __init__(self, kind, batch_first):
        super().__init__()
        self.layer, self.head = kind(D, H, batch_first=batch_first), nn.Linear(H, 2)
        self.axis = int(batch_first)

    def forward(self, x):
        return self.head(self.layer(x)[0].select(self.axis, -1))


class Cell(nn.Module):
    """Steps written out, from a state of zeros or one that was learned."""

    def __init__(self, kind, learned=False):
        super().__init__()
        self.cell = kind(D, T)
        self.state = nn.Parameter(torch.zeros(1, T)) if learned else None

    def forward(self, x):
        state = torch.zeros(x.shape[0], T) if self.state is None else self.state.expand(len(x), -1)
        if isinstance(self.cell, nn.LSTMCell):
            state = (state, x.new_zeros(x.size(0), T))
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(20, D)
        self.layer = nn.LSTM(D, H, bidirectional=True, batch_first=True)
        self.tags = nn.Linear(2 * H, 4)

    def forward(self, ids, lengths):
        packed = pack_padded_sequence(self.words(ids), lengths, batch_first=True, enforce_sorted=False)
        out, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        return self.tags(out)


class Adapted(nn.Module):
    """A low-rank update is merged into the weight each time."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(D, 5)
        self.a, self.b = nn.Parameter(torch.randn(2, D)), nn.Parameter(torch.randn(5, 2))

    def forward(self, x):
        return F.linear(x, self.base.weight + 0.5 * self.b @ self.a, self.base.bias)


class Graph(nn.Module):
    """Messages along edges, given with the features or kept; features of one graph or of many with the same edges."""

    def __init__(self, kept):
        super().__init__()
        self.lin, self.own = nn.Linear(D, H), nn.Linear(D, H)
        if kept:
            self.register_buffer("edges", EDGES)

    def forward(self, x, edge_index=None):
        source, target = self.edges if edge_index is None else edge_index
        own, messages = self.own(x), self.lin(x).index_select(-2, source)
        return torch.zeros_like(own).index_add(-2, target, messages) + own


class UnionOfGraphs(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.head = nn.Linear(D, H), nn.Linear(H, 2)

    def forward(self, x, edge_index, batch):
        x = torch.zeros(len(x), H).index_add(0, edge_index[1], self.lin(x)[edge_index[0]]).relu()
        count = int(batch.max()) + 1
        return self.head(torch.zeros(count, H).index_add(0, batch, x))


def union_of_graphs(n):
    x = repeated(n, NODES, D).flatten(0, 1)
    edges = torch.cat([EDGES + NODES * i for i in range(n)], 1)
    return x, edges, torch.arange(n).repeat_interleave(NODES)


class Adjacency(nn.Module):
    """Graph convolutions by a dense matrix that belongs to the network."""

    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.rand(NODES, NODES))
        self.one, self.two = nn.Linear(D, H), nn.Linear(H, D)

    def forward(self, x):
        x = (self.adjacency @ self.one(x)).relu()
        return torch.einsum("vw,nwc->nvc", self.adjacency, self.two(x))


ADJACENCY = 2 * NODES * D * H + NODES * NODES * (H + D)


class SpaceTime(nn.Module):
    """A series at each node: convolution over time with nodes in the batch, then one over the nodes."""

    def __init__(self):
        super().__init__()
        self.time, self.space = nn.Conv1d(2, H, 3, padding=1), nn.Parameter(torch.rand(NODES, 2))

    def forward(self, x):  # [N, channels, nodes, time]
        size, channels, nodes, length = x.shape
        x = self.time(x.transpose(1, 2).reshape(size * nodes, channels, length)).view(size, nodes, H, length)
        adjacency = (self.space @ self.space.t()).softmax(-1)
        return torch.einsum("vw,nwct->nvct", adjacency, x)


SPACE_TIME = NODES * 6 * 2 * H * 3 + NODES * NODES * H * 6  # the adjacency is computed from parameters alone


class TwoTowers(nn.Module):
    """Similarities of all pairs in the batch: with one pair there is one."""

    def __init__(self):
        super().__init__()
        self.images, self.words, self.text = nn.Linear(12, D), nn.Embedding(20, D), nn.Linear(D, D)

    def forward(self, pixels, ids):
        images = F.normalize(self.images(pixels), dim=-1)
        texts = F.normalize(self.text(self.words(ids).mean(1)), dim=-1)
        return images @ texts.t()


class Field(nn.Module):
    """Many points of each sample, as a network of coordinates: they are rows like the samples."""

    def __init__(self):
        super().__init__()
        self.code, self.point, self.out = nn.Linear(T, D), nn.Linear(2, D), nn.Linear(D, 1)
        self.register_buffer("points", torch.rand(8, 2))

    def forward(self, x):
        return self.out(torch.tanh(self.code(x)[:, None] + self.point(self.points)[None]))


class OwnWeights(nn.Module):
    """A network whose output is the weight of another, for each sample."""

    def __init__(self):
        super().__init__()
        self.make, self.embed = nn.Linear(T, D * 4), nn.Linear(H, D)

    def forward(self, x, condition):
        weight = self.make(condition).view(len(x), D, 4)
        return torch.bmm(self.embed(x), weight)


class Beams(nn.Module):
    """Three continuations of each sentence, in a batch of three times the size."""

    def __init__(self):
        super().__init__()
        self.words, self.mix, self.head = nn.Embedding(20, D), nn.Linear(T * D, D), nn.Linear(D, 20)

    def forward(self, ids):
        ids = ids.repeat_interleave(3, 0)
        scores = self.head(torch.tanh(self.mix(self.words(ids).flatten(1))))
        return scores.view(-1, 3 * 20).topk(3, -1)


class OneByOne(nn.Module):
    """A loop over the samples of a batch."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(D, 16), nn.Linear(16, H)

    def forward(self, x):
        return torch.stack([self.two(self.one(sample).relu()).mean(0) for sample in x])


class TimeMajorInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.GRU(D, H), nn.Linear(H, 2)

    def forward(self, x):
        return self.head(self.layer(x.transpose(0, 1))[0][-1])


class Operator(nn.Module):
    """A function's values for each sample, and places where its image is asked for, the same for all."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, D))
        self.trunk = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, D))

    def forward(self, values, places):
        return torch.einsum("nd,pd->np", self.branch(values), self.trunk(places))


OPERATOR = 6 * 16 + 16 * D + 7 * (2 * 16 + 16 * D) + 7 * D


class Sparse(nn.Module):
    """Nodes in front, so that one sparse product serves the whole batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.eye(NODES).roll(1, 0).to_sparse())
        self.lin = nn.Linear(D, H)

    def forward(self, x):
        size = len(x)
        moved = self.lin(x).transpose(0, 1).reshape(NODES, size * H)
        return torch.sparse.mm(self.adjacency, moved).view(NODES, size, H).transpose(0, 1)


def time_major(n):
    return (repeated(n, T, D, axis=1),)


SECOND = lambda n: {"batch_dim": 1}  # noqa: E731
TELL = lambda n: {"inferences": n}  # noqa: E731


class Solves(nn.Module):
    """What a layer says of each sample is the right-hand side of a system that all samples share."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(T, D, bias=False), how
        self.matrix = nn.Parameter(torch.eye(D) + 0.1)

    def forward(self, x):
        return self.how(self.matrix, self.layer(x).T).T


class Filled(nn.Module):
    """Results of one sample after another are written into a tensor that was made for all."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(D, H), nn.Linear(H, 2)

    def forward(self, x):
        out = x.new_empty(len(x), T, H)
        for i, sample in enumerate(x):
            out[i].copy_(self.layer(sample))
        return self.head(out)


class Looks(nn.Module):
    """An image is looked at through three grids of each sample's own."""

    def __init__(self):
        super().__init__()
        self.grids = nn.Linear(2, 3 * 4 * 4 * 2)

    def forward(self, x):
        places = self.grids(x.mean((2, 3))).view(-1, 4, 4, 2)
        images = x[:, None].expand(-1, 3, -1, -1, -1).flatten(0, 1)
        return F.grid_sample(images, places, align_corners=False)


FAMILIES = [
    Family("experts one after another", lambda n: Routed(), lambda n: (words(n, T, 20),), ROUTED),
    Family("stacked experts by einsum", lambda n: AllExperts(expanded=False), copies(T, D), ALL_EXPERTS),
    Family("stacked experts, tokens expanded", lambda n: AllExperts(expanded=True), copies(T, D), ALL_EXPERTS),
    Family("a linear layer for each channel", lambda n: OfEachChannel(), copies(T, H), H * T * 4),
    Family("stacked layers for each channel", lambda n: Stacked(), copies(T, H), H * T * 4),
    Family("LSTM", lambda n: Recurrent(nn.LSTM, True), copies(T, D), T * 4 * H * (D + H) + H * 2),
    Family("time-major LSTM", lambda n: Recurrent(nn.LSTM, False), time_major, T * 4 * H * (D + H) + H * 2, SECOND),
    Family("time-major GRU", lambda n: Recurrent(nn.GRU, False), time_major, T * 3 * H * (D + H) + H * 2, SECOND),
    Family("GRU cell from zeros", lambda n: Cell(nn.GRUCell), copies(3, D), 3 * 3 * T * (D + T)),
    Family("LSTM cell from zeros", lambda n: Cell(nn.LSTMCell), copies(3, D), 3 * 4 * T * (D + T)),
    Family("RNN cell from a learned state", lambda n: Cell(nn.RNNCell, True), copies(3, D), 3 * T * (D + T)),
    Family(
        "packed sequences in both directions",
        lambda n: Packed(),
        lambda n: (words(n, T, 20), torch.tensor([4]).repeat(n)),
        4 * 2 * 4 * H * (D + H) + 4 * 2 * H * 4,
    ),
    Family("low-rank update merged", lambda n: Adapted(), copies(T, D), T * D * 5),
    Family("weight normalisation", lambda n: weight_norm(nn.Linear(D, H)), copies(T, D), T * D * H),
    Family("messages along kept edges", lambda n: Graph(kept=True), copies(NODES, D), 2 * NODES * D * H),
    Family(
        "messages along edges given with a batch",
        lambda n: Graph(kept=False),
        lambda n: (repeated(n, NODES, D), EDGES),
        2 * NODES * D * H,
        lambda n: {"batch_dim": 0},
    ),
    Family("union of graphs", lambda n: UnionOfGraphs(), union_of_graphs, NODES * D * H + H * 2, TELL),
    Family("dense adjacency", lambda n: Adjacency(), copies(NODES, D), ADJACENCY),
    Family("series at nodes", lambda n: SpaceTime(), copies(2, NODES, 6), SPACE_TIME),
    Family(
        "similarities of images and texts",
        lambda n: TwoTowers(),
        lambda n: (repeated(n, 12), words(n, T, 20)),
        12 * D + D * D + D,
    ),
    Family("points shared by all samples", lambda n: Field(), copies(T), T * D + 8 * D),
    Family(
        "weights made for each sample",
        lambda n: OwnWeights(),
        lambda n: (repeated(n, T, H), repeated(n, T)),
        T * D * 4 + T * H * D + T * D * 4,
    ),
    Family("samples one by one", lambda n: OneByOne(), copies(T, D), T * (D * 16 + 16 * H)),
    Family("time-major inside", lambda n: TimeMajorInside(), copies(T, D), T * 3 * H * (D + H) + H * 2),
    Family(
        "places that all samples share, as an argument",
        lambda n: Operator(),
        lambda n: (repeated(n, 6), repeated(1, 7, 2)[0]),
        OPERATOR,
    ),
    Family("sparse adjacency", lambda n: Sparse(), copies(NODES, D), NODES * D * H),
    Family("beams", lambda n: Beams(), lambda n: (words(n, T, 20),), 3 * (T * D * D + D * 20)),
    Family("a system that all samples share", lambda n: Solves(torch.linalg.solve), copies(T), T * D + D * D),
    Family(
        "a triangular system that all samples share",
        lambda n: Solves(lambda a, b: torch.linalg.solve_triangular(a, b, upper=True)),
        copies(T),
        T * D + D * D // 2,
    ),
    Family(
        "a Cholesky factor that all samples share",
        lambda n: Solves(lambda a, b: torch.cholesky_solve(b, a)),
        copies(T),
        T * D + D * D,
    ),
    Family("filled sample by sample", lambda n: Filled(), copies(T, D), T * (D * H + H * 2)),
    Family("one image, three grids", lambda n: Looks(), copies(2, 6, 6), 2 * 96),
]
