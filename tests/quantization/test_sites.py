"""Which weights are found, under which names."""

import pytest
import torch
from torch import nn

from lightning_effnn.quantization.sites import activation_sites, check_finite, weight_sites


def found(model, **patterns):
    return {site.name: site.axis for site in weight_sites(model, **patterns)}


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_have_their_outputs_first_and_transposed_ones_second(dims):
    conv = getattr(nn, f"Conv{dims}d")(4, 6, 3)
    transposed = getattr(nn, f"ConvTranspose{dims}d")(4, 6, 3)
    assert found(nn.Sequential(conv, transposed)) == {"0.weight": 0, "1.weight": 1}
    for layer, site in zip((conv, transposed), weight_sites(nn.Sequential(conv, transposed)), strict=True):
        assert site.parameter is layer.weight
        assert site.parameter.shape[site.axis] == 6


def test_norms_and_biases_are_none():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Linear(4, 3), nn.PReLU(), nn.GroupNorm(1, 3))
    assert found(model) == {"2.weight": 0}


def test_other_layers():
    model = nn.ModuleDict(
        {"bilinear": nn.Bilinear(2, 3, 4), "embedding": nn.Embedding(7, 3), "bag": nn.EmbeddingBag(7, 3)}
    )
    assert found(model) == {"bilinear.weight": 0, "embedding.weight": 1, "bag.weight": 1}


def test_attention_has_packed_or_separate_projections_and_an_output():
    assert found(nn.MultiheadAttention(8, 2)) == {"in_proj_weight": 0, "out_proj.weight": 0}
    separate = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert list(found(separate)) == ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_and_cells(kind):
    layer = kind(3, 4, num_layers=2, bidirectional=True)
    assert list(found(layer)) == [n for n, _ in layer.named_parameters() if n.startswith("weight")]
    cell = getattr(nn, f"{kind.__name__}Cell")(3, 4)
    assert found(cell) == {"weight_ih": 0, "weight_hh": 0}


def test_the_projection_of_an_lstm_is_a_weight_too():
    assert found(nn.LSTM(3, 4, proj_size=2)) == {"weight_ih_l0": 0, "weight_hh_l0": 0, "weight_hr_l0": 0}


def test_linear_layers_of_torch_geometric():
    geometric = pytest.importorskip("torch_geometric.nn")
    model = nn.Sequential(geometric.Linear(3, 4), geometric.HeteroLinear(3, 5, num_types=2))
    assert found(model) == {"0.weight": 0, "1.weight": 2}
    assert "lin.weight" in found(geometric.GCNConv(3, 4))
    with pytest.raises(ValueError, match=r"lazy modules that are not initialised \(0\)"):
        weight_sites(nn.Sequential(geometric.Linear(-1, 4)))


def test_a_class_whose_name_ends_in_linear_is_taken_by_its_weight():
    class MaskedLinear(nn.Module):
        def __init__(self, *shape):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(shape))

    assert found(nn.Sequential(MaskedLinear(2, 3), MaskedLinear(4), nn.Linear(1, 1))) == {"0.weight": 0, "2.weight": 0}


def test_a_tied_weight_is_one_site_with_all_its_names():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 10, bias=False)
            self.head.weight = self.embedding.weight
            self.again = self.head

    (site,) = weight_sites(Model())
    assert site.name == "embedding.weight"
    assert site.names == ("embedding.weight", "head.weight", "again.weight")
    with pytest.raises(ValueError, match="no weight to prune or quantise"):
        weight_sites(Model(), exclude=["head.*"])


def test_weights_that_are_empty_or_not_floating_are_none():
    integers = nn.Linear(2, 2)
    integers.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    assert found(nn.Sequential(integers, nn.Linear(0, 4), nn.Linear(4, 1))) == {"2.weight": 0}


def test_weights_of_a_model_in_which_nothing_trains_are_taken():
    assert found(nn.Linear(2, 2).requires_grad_(False)) == {"weight": 0}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"include": ["body.*"]}, ["body.0.weight", "body.1.weight"]),
        ({"include": ["Conv?d"]}, ["body.0.weight"]),
        ({"include": "head"}, ["head.weight"]),
        ({"exclude": ["head", "body.0.weight"]}, ["body.1.weight"]),
        ({"include": ["body*"], "exclude": ["Linear"]}, ["body.0.weight"]),
        ({"exclude": ["ReLU"]}, ["body.0.weight", "body.1.weight", "head.weight"]),
        ({"exclude": []}, ["body.0.weight", "body.1.weight", "head.weight"]),
    ],
)
def test_patterns_match_parameters_modules_and_classes(patterns, expected):
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2), nn.ReLU())
    assert list(found(nn.ModuleDict({"body": body, "head": nn.Linear(2, 2)}), **patterns)) == expected


def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name():
    model = nn.ModuleDict({"conv": nn.Conv2d(1, 2, 3)})
    with pytest.raises(ValueError, match=r"include pattern 'convv' matches no .*did you mean 'conv'\?"):
        weight_sites(model, include=["convv"])
    with pytest.raises(ValueError, match="exclude pattern 'Linear' matches no"):
        weight_sites(model, exclude=["Linear"])
    with pytest.raises(TypeError, match="include must be a list of patterns, got 3 in it"):
        weight_sites(model, include=[3])


@pytest.mark.parametrize("patterns", [{}, {"include": []}, {"include": ["BatchNorm1d"]}])
def test_no_weight_at_all_is_refused_saying_what_was_looked_for(patterns):
    with pytest.raises(ValueError, match="no weight to prune or quantise.*looked for weights of Conv1d"):
        weight_sites(nn.Sequential(nn.BatchNorm1d(2), nn.ReLU()), **patterns)


def test_lazy_modules_are_named():
    with pytest.raises(ValueError, match=r"lazy modules that are not initialised \(1, 2\)"):
        weight_sites(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3), nn.LazyConv2d(2, 3)))


def test_weights_that_are_not_finite_are_named():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    check_finite(weight_sites(model))
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
        model[2].weight[1, 1] = -torch.inf
        model[1].bias[0] = torch.nan  # not looked at
    with pytest.raises(ValueError, match=r"NaN or infinity in 0.weight, 2.weight$"):
        check_finite(weight_sites(model))


def inputs(model, **patterns):
    return {site.name: site.arguments for site in activation_sites(model, **patterns)}


def test_what_goes_into_the_owners_of_weights_is_an_activation_site():
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(9, 4),
            "conv": nn.Conv1d(1, 2, 3),
            "up": nn.ConvTranspose2d(1, 2, 3),
            "norm": nn.LayerNorm(4),
            "bilinear": nn.Bilinear(2, 3, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "lstm": nn.LSTM(2, 3),
            "cell": nn.GRUCell(2, 3),
        }
    )
    assert inputs(model) == {
        "conv": ("input",),
        "up": ("input",),
        "bilinear": ("input1", "input2"),
        "attention": ("query", "key", "value"),
        "lstm": ("input",),
        "cell": ("input",),
    }
    assert inputs(nn.Linear(1, 1)) == {"": ("input",)}
    assert inputs(nn.Embedding(2, 2)) == {}


def test_messages_of_graph_layers_are_sites_behind_their_layers_others():
    geometric = pytest.importorskip("torch_geometric.nn")
    model = nn.ModuleDict(
        {"a": geometric.GCNConv(3, 4), "b": geometric.GATConv(4, 2, heads=2), "out": geometric.Linear(4, 2)}
    )
    assert list(inputs(model)) == ["a.lin", "a.aggr_module", "b.lin", "b.aggr_module", "out"]
    sites = {site.name: site for site in activation_sites(model)}
    assert sites["a.aggr_module"].messages_of is model["a"]
    assert sites["a.lin"].messages_of is None
    assert list(inputs(model["a"])) == ["lin", "aggr_module"]
    assert list(inputs(model, include=["GCNConv"])) == ["a.aggr_module"]
    assert list(inputs(model, exclude=["*aggr_module"])) == ["a.lin", "b.lin", "out"]


def test_a_pattern_for_a_weight_takes_its_modules_input_under_any_name():
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    model["again"] = model["first"]
    assert list(inputs(model, include=["first.weight"])) == ["first"]
    assert list(inputs(model, exclude=["again.*"])) == ["second"]
    with pytest.raises(ValueError, match=r"did you mean 'second'\?"):
        inputs(model, include=["secnd"])
