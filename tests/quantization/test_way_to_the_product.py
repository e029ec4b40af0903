"""On a weight's way to its product: what is followed, what is left and why, what a look leaves as it was."""

import copy
import pickle
import warnings

import pytest
import torch
from helpers import TOKENS, Language, Projection, Standardised, found, weight_sites_after
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_effnn.quantization import (
    Selection,
    WeightFinder,
    activation_sites,
    declare_weight,
    find_weights_,
    forget_weights,
    quantize_,
    weight_sites,
)
from lightning_effnn.quantization.weights import noted_uses, restore_uses_


def test_a_standardised_convolution_is_left_with_the_true_reason():
    model, x = nn.Sequential(nn.Conv2d(1, 4, 3), Standardised(4, 4, 3)), torch.randn(2, 1, 8, 8)
    assert found(model, x) == {"0.weight": 0}
    (group, *_) = Selection(model).left
    assert group.names == ("1.weight",)
    assert group.reason.startswith("goes through sub before the product")
    assert [site.name for site in activation_sites(model)] == ["0", "1"]  # what goes in can be quantised all the same
    forget_weights(model)
    assert len(weight_sites(model)) == 2


def test_a_cosine_classifier_is_followed_through_its_norm():
    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.prototypes = nn.Parameter(torch.randn(10, 16))

        def forward(self, x):
            return 20 * F.normalize(x) @ F.normalize(self.prototypes).T

    model = nn.Sequential(nn.Linear(16, 16), Cosine())
    assert found(model, torch.randn(3, 16)) == {"0.weight": 0, "1.prototypes": 0}
    assert [site.name for site in activation_sites(model)] == ["0"]  # what goes in is another tensor than the factor


@pytest.mark.parametrize("looked", [True, False])
@pytest.mark.parametrize(
    ("computed", "name"),
    [
        (parametrizations.weight_norm, "parametrizations.weight.original1"),
        (parametrizations.spectral_norm, "parametrizations.weight.original"),
        (lambda m: prune.l1_unstructured(m, "weight", 0.5), "weight_orig"),
        (nn.utils.spectral_norm, "weight_orig"),
    ],
)
@pytest.mark.parametrize("layer", [lambda: nn.Linear(8, 6), lambda: nn.ConvTranspose1d(8, 6, 3)])
def test_a_weight_that_is_scaled_or_masked_is_its_parameter(layer, computed, name, looked):
    model = nn.Sequential(computed(layer()))
    if looked:
        find_weights_(model, torch.randn(4, 8, *([5] if isinstance(model[0], nn.ConvTranspose1d) else [])))
    (site,) = weight_sites(model)
    assert site.name == f"0.{name}"
    assert site.parameter.shape[site.axis] == 6
    assert [site.name for site in activation_sites(model)] == ["0"]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    weight_sites(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("looked", [True, False])
def test_a_weight_that_a_parametrization_changes_is_left_with_the_reason(looked):
    class Symmetric(nn.Module):
        def forward(self, x):
            return x + x.T

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    parametrize.register_parametrization(model[1], "weight", Symmetric())
    if looked:
        find_weights_(model, torch.randn(2, 8))
    assert [site.name for site in weight_sites(model)] == ["0.weight"]
    (group, *_) = Selection(model).left
    assert group.names == ("1.parametrizations.weight.original",)
    assert "goes through add" in group.reason


def test_what_was_seen_goes_with_copies_and_never_into_a_state_dict():
    model, x = nn.Sequential(Projection(6, 8)), torch.randn(2, 8)
    keys = list(model.state_dict())
    find_weights_(model, x)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [site.name for site in weight_sites(again)] == ["0.weight"]
    assert list(model.state_dict()) == keys
    fresh = nn.Sequential(Projection(6, 8))
    restore_uses_(fresh, noted_uses(model))
    assert weight_sites(fresh)[0].axis == 1
    forget_weights(model)
    assert noted_uses(model) == {}


def test_declared_for_a_class_or_a_module_and_stronger_than_what_is_seen():
    class Cooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(8, 6))

        def forward(self, x):
            return x @ (self.matrix + 1)

    class Child(Cooked):
        pass

    declare_weight(Cooked, "matrix", channel=-1)
    model = nn.Sequential(Child())
    assert found(model, torch.randn(2, 8)) == {"0.matrix": 1}
    assert Selection(model).share_of_macs == 1.0
    other = Projection(6, 8)
    declare_weight(other, channel=None)
    assert [(site.name, site.axis) for site in weight_sites(other)] == [("weight", None)]
    with pytest.raises(ValueError, match=r"name must be a floating-point parameter of Projection \(weight, bias\)"):
        declare_weight(other, "kernel", channel=0)
    with pytest.raises(ValueError, match=r"channel must be an axis of weight, of shape \(8, 6\), or None, got 2"):
        declare_weight(other, channel=2)
    with pytest.raises(TypeError, match="a module or a class of modules"):
        declare_weight("weight", channel=0)


def test_a_run_is_not_changed_and_a_natural_training_step_can_be_watched():
    def step(model, finder=None):
        torch.manual_seed(1)
        if finder is not None:
            finder.open()
        x = torch.randn(4, 16)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x).square().mean() + torch.dropout(x, 0.5, True).mean()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
        if finder is not None:
            finder.close()
        return loss.detach()

    def model():
        torch.manual_seed(0)
        return nn.Sequential(
            Projection(16, 16), nn.Dropout(0.1), nn.GRU(16, 8, batch_first=True), Last(), nn.Linear(8, 2)
        )

    class Last(nn.Module):
        def forward(self, pair):
            return pair[0]

    plain, watched = model(), model()
    finder = WeightFinder(watched)
    assert torch.equal(step(plain), step(watched, finder))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert finder.error is None
    assert weight_sites(watched)[0].name == "0.weight"
    selection = Selection(watched)
    assert selection.share_of_macs == 1.0
    macs = {name: use["macs"] for name, use in noted_uses(watched).items()}
    assert macs["0.weight"] == 4 * 256
    assert macs["2.weight_ih_l0"] == 4 * 24 * 16


def test_noise_that_is_drawn_inside_is_a_batch():
    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Projection(8, 4), Projection(3, 8)

        def forward(self, number):
            return self.second(self.first(torch.randn(number, 4)).relu())

    assert found(Generator(), 5) == {"first.weight": 1, "second.weight": 1}


def test_learned_queries_are_activations_and_what_they_meet_are_weights():
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries = nn.Parameter(torch.randn(5, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(self.queries.expand(len(x), -1, -1), x, x)[0]

    selection = find_weights_(Decoder(), torch.randn(3, 7, 8))
    assert [site.name for site in selection.sites] == ["attention.in_proj_weight", "attention.out_proj.weight"]


def test_a_graph_kept_in_the_model_is_data():
    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("x", torch.randn(10, 4))
            self.lin = Projection(3, 4)

        def forward(self):
            return self.lin(self.x)

    assert found(Graph()) == {"lin.weight": 1}


class Spectral(nn.Module):
    """Products of the lowest frequencies, as in a Fourier neural operator."""

    def __init__(self, stored_real):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(3, 5, 4, dtype=torch.cfloat))
        if stored_real:
            self.kernel = nn.Parameter(torch.view_as_real(self.kernel.detach()).contiguous())

    def forward(self, x):
        kernel = self.kernel if self.kernel.is_complex() else torch.view_as_complex(self.kernel)
        return torch.einsum("bim,iom->bom", torch.fft.rfft(x)[..., :4], kernel).real


def test_complex_weights_are_left_and_named_and_their_real_parts_are_taken():
    x = torch.randn(2, 3, 16)
    selection = find_weights_(nn.Sequential(Spectral(False), nn.Linear(4, 4)), x)
    assert [site.name for site in selection.sites] == ["1.weight"]
    assert "complex" in selection.left[0].reason
    assert selection.left[0].names == ("0.kernel",)
    assert not selection.is_enough
    assert found(Spectral(True), x) == {"kernel": 1}


class Dropped(nn.Module):
    """Weights of which some are dropped at random, and stacked experts of layers."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 6))
        self.experts = nn.ModuleList(Projection(5, 6) for _ in range(3))

    def forward(self, x):
        x = x @ F.dropout(self.matrix, 0.5, self.training)
        return torch.bmm(x.expand(3, *x.shape), torch.stack([expert.weight for expert in self.experts]))


def test_weights_that_are_dropped_or_stacked_in_a_training_step():
    model = Dropped()
    with WeightFinder(model) as finder:
        model(torch.randn(4, 8)).sum().backward()
    assert finder.error is None
    axes = {site.name: site.axis for site in weight_sites(model)}
    assert axes == {"matrix": 1, "experts.0.weight": 1, "experts.1.weight": 1, "experts.2.weight": 1}


def test_a_convolution_standardised_by_batch_norm_is_left():
    class Standard(nn.Conv2d):
        def forward(self, x):
            flat = self.weight.reshape(1, self.out_channels, -1)
            weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
            return self._conv_forward(x, weight, self.bias)

    with pytest.raises(ValueError, match="no weight"):
        weight_sites_after(Standard(3, 4, 3), torch.randn(1, 3, 8, 8))


LAYERS = {
    "attention": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)),
    "lstm": lambda: (nn.LSTM(8, 6, 2, bidirectional=True, proj_size=3), torch.randn(5, 2, 8)),
    "bilinear": lambda: (Twice(nn.Bilinear(8, 8, 6)), torch.randn(3, 8)),
    "cell": lambda: (Twice(nn.GRUCell(8, 8)), torch.randn(3, 8)),
    "grouped": lambda: (nn.Conv2d(8, 12, 3, groups=4), torch.randn(1, 8, 6, 6)),
    "transposed": lambda: (nn.ConvTranspose2d(8, 12, 3, groups=2), torch.randn(1, 8, 6, 6)),
    "bag": lambda: (nn.EmbeddingBag(20, 6), torch.randint(0, 20, (3, 4))),
}


class Twice(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x, x)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_run_says_of_known_classes_what_their_classes_say(name, training):
    model, x = LAYERS[name]()
    before = {site.name: site.axis for site in weight_sites(model)}
    if training:
        with WeightFinder(model) as finder:
            out = model(x)
            (out[0] if isinstance(out, tuple) else out).sum().backward()
        assert finder.error is None
    else:
        find_weights_(model, x)
    assert {site.name: site.axis for site in weight_sites(model)} == before
    assert Selection(model).share_of_macs in (None, 1.0)
    assert set(noted_uses(model)) >= set(before)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("scale", ["observed", "learned", "dynamic"])
def test_attached_quantisers_leave_weights_what_they_are(scale, per_channel):
    model, x = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), Projection(6, 12)), torch.randn(2, 3, 5)
    before = found(model, x)
    quantize_(model, "W8A8", scale=scale, per_channel=per_channel)
    forget_weights(model)
    assert found(model, x) == before == {"0.weight": 0, "2.weight": 1}
    forget_weights(model)
    with WeightFinder(model):
        model.train()(x).sum().backward()
    assert {site.name for site in weight_sites(model)} == set(before)
    assert [site.name for site in activation_sites(model)] == ["0", "2"]


def test_models_without_values_can_be_looked_at():
    model = Language(Projection).to("meta")
    assert find_weights_(model, TOKENS.to("meta")).share_of_macs == 1.0


def test_vectors_that_multiply_have_no_output_axis():
    class Score(nn.Module):
        def __init__(self):
            super().__init__()
            self.v = nn.Parameter(torch.randn(8))

        def forward(self, x):
            return x @ self.v

    assert found(nn.Sequential(nn.Linear(4, 8), Score()), torch.randn(3, 4)) == {"0.weight": 0, "1.v": None}


def test_full_covered_models_say_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize_(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2)), "W8A8")


def test_of_parameters_in_one_piece_of_memory_the_classes_tell():
    net = nn.Sequential(nn.LSTM(8, 8), Last(), nn.Linear(8, 4))
    before = {site.name for site in weight_sites(net)}
    whole, start = torch.cat([p.detach().flatten() for p in net.parameters()]), 0
    for parameter in net.parameters():
        parameter.data = whole[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    find_weights_(net, torch.rand(3, 2, 8))
    assert {site.name for site in weight_sites(net)} == before


class Last(nn.Module):
    def forward(self, found):
        return found[0][-1]


class Into(nn.Module):
    """A product written where there is memory for it, and another."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        into = torch.empty(len(x), 8)
        torch.mm(x, self.one, out=into)
        return into @ self.two


def test_what_is_written_into_an_argument_depends_on_what_was_read():
    net = Into().requires_grad_(False)
    find_weights_(net, torch.rand(2, 8))
    assert {site.name for site in weight_sites(net)} == {"one", "two"}
