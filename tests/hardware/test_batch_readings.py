"""Which axis is the batch: what is told, what is found, and what is said of it."""

import pytest
import torch
from torch import nn

from lightning_effnn.hardware import Tracer, trace


class Kept(nn.Module):
    """Messages between nine nodes along edges, or an adjacency, that the model keeps."""

    def __init__(self, way):
        super().__init__()
        self.lin, self.way = nn.Linear(4, 3), way
        self.register_buffer("edges", torch.randint(0, 9, (2, 20)))
        self.register_buffer("adjacency", torch.rand(9, 9))
        self.plain = torch.randint(0, 9, (2, 20))  # not registered

    def forward(self, x):
        x = self.lin(x)
        if self.way == "adjacency":
            return self.adjacency @ x
        edges = self.edges if self.way == "edges" else self.plain
        return torch.zeros_like(x).index_add_(0, edges[1], x[edges[0]])


@pytest.mark.parametrize("way", ["edges", "adjacency", "plain"])
def test_rows_that_a_constant_of_the_model_mixes_are_nodes_of_one_graph(way):
    result = trace(Kept(way), torch.randn(9, 4))
    assert result.macs == 9 * 4 * 3 + (81 * 3 if way == "adjacency" else 0)
    assert result.traced_batch_size == 1
    (note,) = result.notes
    assert "nodes of one graph" in note
    assert "batch_dim=0" in note


def test_a_batch_that_is_told_to_be_one_is_one_whatever_mixes_it():
    result = trace(Kept("edges"), torch.randn(9, 4), batch_dim=0)
    assert (result.macs, result.traced_batch_size, result.notes) == (4 * 3, 9, ())


def test_a_constant_that_mixes_nodes_within_samples_leaves_them_a_batch():
    result = trace(Kept("adjacency"), torch.randn(5, 9, 4))
    assert (result.macs, result.traced_batch_size) == (9 * 4 * 3 + 81 * 3, 5)


def test_what_a_loader_collates_is_no_list_of_samples():
    model = nn.Linear(8, 2)
    x, y = torch.randn(3, 5, 8), torch.randn(3, 5, 2)
    with Tracer(model, example=[x, y]) as tracer:
        model(x)
    assert (tracer.trace.traced_batch_size, tracer.trace.macs) == (3, 5 * 16)


def test_a_batch_without_tensors_is_what_it_is_made_into():
    model, texts = nn.EmbeddingBag(128, 2), ["deep", "wide"]
    with Tracer(model, example=texts) as tracer:
        model(torch.tensor([[ord(letter) for letter in text] for text in texts]))
    assert tracer.trace.traced_batch_size == 2


def test_a_list_of_images_holds_one_inference_an_image():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return [self.conv(image[None]) for image in images]

    for number in (1, 2, 5):
        result = trace(Detector(), [torch.randn(3, 8, 8) for _ in range(number)])
        assert (result.macs, result.traced_batch_size) == (4 * 36 * 27, number)
        assert "a list of" in result.notes[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_single_sequence_without_a_batch_is_one_inference(kind):
    layer, x = kind(8, 8), torch.randn(6, 8)
    result = trace(layer, x)
    assert result.macs == trace(layer, x[:, None], batch_dim=1).macs
    assert result.traced_batch_size == 1


@pytest.mark.parametrize("told", [{}, {"batch_dim": 1}])
@pytest.mark.parametrize("number", [1, 3, 6])
def test_steps_first_is_seen_in_the_module_that_takes_them_first(told, number):
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.layer, self.tags = nn.Embedding(9, 8), nn.GRU(8, 8), nn.Linear(8, 2)

        def forward(self, ids):
            return self.tags(self.layer(self.words(ids))[0])

    result = trace(Tagger(), torch.zeros(6, number, dtype=torch.long), **told)
    assert (result.macs, result.traced_batch_size) == (6 * (24 * 16 + 16), number)
    assert bool(result.notes) is not bool(told)


def test_inferences_may_be_fewer_than_rows():
    results = [trace(nn.Linear(4, 3), torch.randn(n * 5, 4), inferences=n) for n in (1, 2, 7)]
    assert [(r.macs, r.traced_batch_size) for r in results] == [(5 * 12, 1), (5 * 12, 2), (5 * 12, 7)]


def test_nodes_numbered_by_a_vector_called_batch_are_as_many_graphs():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.head = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x, batch):
            sums = torch.zeros(int(batch.max()) + 1, 3).index_add_(0, batch, self.lin(x))
            return self.head(sums)

    for graphs in (2, 3, 5):
        result = trace(Pooled(), torch.randn(graphs * 4, 4), torch.arange(graphs).repeat_interleave(4))
        assert (result.macs, result.traced_batch_size) == (4 * 12 + 6, graphs)
        assert "numbers" in result.notes[0]


def test_a_network_that_the_batch_does_not_feed_is_counted_as_it_runs_and_that_is_said():
    class Collocation(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("points", torch.randn(20, 2))
            self.net = nn.Linear(2, 3)

        def forward(self, ignored):
            return self.net(self.points)

    result = trace(Collocation(), torch.randn(4, 1))
    assert result.macs == 20 * 6
    assert "no product that ran depends on the batch" in result.notes[0]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"batch_dim": 5}, r"batch_dim=5: no tensor of the batch has that axis \(shapes: \(2, 4\)\)"),
        ({"batch_dim": "0"}, "batch_dim must be the number of an axis"),
        ({"batch_dim": True}, "batch_dim must be the number of an axis"),
        ({"inferences": 0}, "inferences must be an integer of at least 1"),
        ({"inferences": 1.5}, "inferences must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_is_refused(told, message):
    with pytest.raises(ValueError, match=message):
        trace(nn.Linear(4, 3), torch.randn(2, 4), **told)


def test_what_was_assumed_of_another_input_is_said():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(5, 3)

        def forward(self, a, b):
            return self.left(a) @ self.right(b).T

    result = trace(Towers(), torch.randn(6, 4), torch.randn(6, 5))
    assert result.macs == 12 + 15 + 3
    assert "of another input" in result.notes[0]


class Sampled(nn.Module):
    """Three steps of each sample, drawn at random."""

    def forward(self, x):
        return x[:, torch.multinomial(torch.ones(x.shape[1]), 3)]


def test_that_random_numbers_decide_what_is_looked_up_is_said():
    notes = trace(Sampled(), torch.rand(2, 8, 4)).notes
    assert [note for note in notes if "one draw" in note and "random" in note]


def test_a_result_that_is_handed_in_is_not_read():
    class Into(nn.Module):
        def forward(self, x):
            return torch.cumsum(x, 1, out=torch.empty_like(x))

    (operation,) = [o for o in trace(Into(), torch.rand(2, 8)).operations if o.op == "cumsum"]
    assert (operation.elements_in, operation.elements_out) == (8, 8)


def dense(n):
    """As many graphs of twelve nodes and 24 edges."""
    data = pytest.importorskip("torch_geometric.data")
    generator = torch.Generator().manual_seed(1)
    x, edges = torch.randn(12, 8, generator=generator), torch.randint(12, (2, 24), generator=generator)
    return data.Batch.from_data_list([data.Data(x=x, edge_index=edges) for _ in range(n)])


class Dense(nn.Module):
    """All pairs of nodes of each graph."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(8, 8)

    def forward(self, graphs):
        nodes = graphs.x.view(graphs.num_graphs, 12, 8).relu()
        return self.lin(nodes) @ nodes.transpose(1, 2)


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_nodes_seen_graph_by_graph_are_as_many_as_each_has(number):
    assert trace(Dense(), dense(number)).macs == 12 * 8 * 8 + 12 * 12 * 8


class Kinds(nn.Module):
    """Messages from users to items."""

    def __init__(self):
        super().__init__()
        self.users, self.edges = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, graphs):
        sent = self.users(graphs["user"].x)[graphs["user", "buys", "item"].edge_index[0]]
        return self.edges(sent)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_graphs_of_several_kinds_of_nodes_are_put_one_behind_the_other(number):
    data = pytest.importorskip("torch_geometric.data")
    graph = data.HeteroData()
    graph["user"].x, graph["item"].x = torch.rand(5, 4), torch.rand(7, 3)
    graph["user", "buys", "item"].edge_index = torch.stack([torch.arange(9) % 5, torch.arange(9) % 7])
    assert trace(Kinds(), data.Batch.from_data_list([graph] * number)).macs == 5 * 4 * 8 + 9 * 8 * 2


class Together(nn.Module):
    """The prompts of all images with each image."""

    def __init__(self):
        super().__init__()
        self.text, self.image = nn.Linear(4, 8), nn.Linear(6, 8)

    def forward(self, text, image):
        prompts = self.text(text)[None].expand(len(image), -1, -1) * 2.0
        return (prompts * self.image(image)[:, None]).sum(-1)


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_two_inputs_of_as_many_rows_are_one_batch_though_each_meets_all_of_the_other(number):
    found = trace(Together(), torch.rand(1, 4).repeat(number, 1), torch.rand(1, 6).repeat(number, 1))
    assert found.macs == 4 * 8 + 6 * 8


class Points(nn.Module):
    def forward(self, sets):
        return torch.stack(sets) @ torch.ones(4, 2)


def test_of_a_list_of_tensors_of_one_shape_it_is_said_how_it_was_read():
    sets = [torch.rand(7, 4), torch.rand(7, 4)]
    assert any("2 tensors of the shape (7, 4)" in note for note in trace(Points(), sets).notes)
    assert not any("tensors of the shape" in note for note in trace(Points(), sets, inferences=2).notes)


class Rarely(nn.Module):
    """Rows that almost never come go through a layer of their own."""

    def __init__(self):
        super().__init__()
        self.usual, self.rare = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.usual(x)
        rows = (x[:, 0] > 1e9).nonzero().view(-1)
        return x.index_copy(0, rows, self.rare(x.index_select(0, rows)))


@pytest.mark.parametrize("number", [1, 2, 5])
def test_what_no_row_goes_through_costs_nothing(number):
    found = trace(Rarely(), torch.rand(number, 8))
    assert (found.macs, found.unknown) == (8 * 8, {})
