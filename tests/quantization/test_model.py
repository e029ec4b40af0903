"""Quantise by plan, write levels into weights, look at what was covered."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_effnn.formats import FixedPoint, declared_formats
from lightning_effnn.hardware import trace
from lightning_effnn.quantization import (
    QuantizationPlan,
    TensorQuantizer,
    attach_,
    bake_,
    coverage,
    quantize_,
    strip_,
    weight_sites,
)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(32, 3)
    )


def images():
    return torch.randn(5, 1, 6, 6, generator=torch.Generator().manual_seed(0))


class TestQuantize:
    def test_each_site_gets_the_width_of_the_plan(self):
        plan = QuantizationPlan({"0.weight": 8, "3.weight": 2, "5.weight": 32}, {"0": 8, "3": 32, "5": 4})
        attachment = quantize_(net(), plan)
        assert {name: q.bits for name, q in attachment.weights.items()} == {"0.weight": 8, "3.weight": 2}
        assert {name: q.bits for name, q in attachment.activations.items()} == {"0": 8, "5": 4}

    @pytest.mark.parametrize(
        ("scale", "weights", "activations"),
        [("observed", "dynamic", "observed"), ("learned", "learned", "learned"), ("dynamic", "dynamic", "dynamic")],
    )
    def test_where_scales_come_from(self, scale, weights, activations):
        attachment = quantize_(net(), "W4A8", scale)
        assert {q.source for q in attachment.weights.values()} == {weights}
        assert {q.source for q in attachment.activations.values()} == {activations}

    def test_patterns(self):
        attachment = quantize_(net(), "W4A8", include=["Conv2d"], exclude=["0"])
        assert (list(attachment.weights), list(attachment.activations)) == (["3.weight"], ["3"])

    def test_a_scale_a_channel_loses_less(self):
        model, x = net().eval(), images()
        with torch.no_grad():
            model[3].weight.mul_(torch.logspace(-1, 1, 8).view(-1, 1, 1, 1))
            expected = model(x)
            losses = []
            for per_channel in (True, False):
                attachment = quantize_(model, "W4A8", include=["3.weight"], per_channel=per_channel)
                losses.append(float((model(x) - expected).square().mean()))
                attachment.strip()
        assert losses[0] < losses[1]

    def test_learned_scales_are_trained(self):
        model = net()
        attachment = quantize_(model, "W4A4", "learned")
        model(images())
        optimizer = torch.optim.SGD([*model.parameters(), *attachment.quantizers.parameters()], 0.1)
        before = {name: p.detach().clone() for name, p in attachment.quantizers.named_parameters()}
        model(images()).square().mean().backward()
        optimizer.step()
        assert all(not torch.equal(p, before[name]) for name, p in attachment.quantizers.named_parameters())

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"the plan names what Sequential does not have: weights: 'x'"):
            quantize_(net(), QuantizationPlan({"x": 4}))
        with pytest.raises(ValueError, match="name must be one of W8A8"):
            quantize_(net(), "W5")
        with pytest.raises(ValueError, match="scale must be one of"):
            quantize_(net(), "W4A8", "max")
        with pytest.raises(ValueError, match="at least one quantiser"):
            quantize_(net(), QuantizationPlan({"0.weight": 32}))
        with pytest.raises(ValueError, match="no weight to prune or quantise"):
            quantize_(nn.ReLU(), QuantizationPlan())
        with pytest.raises(ValueError, match="lazy modules"):
            quantize_(nn.Sequential(nn.LazyLinear(2)), "W8A8")


class TestBake:
    @pytest.mark.parametrize("scale", ["observed", "learned"])
    def test_weights_are_levels_of_their_declared_format_and_nothing_is_left(self, scale):
        model = net()
        plan = QuantizationPlan.uniform(model, 4, 32, first_last=8)
        plan = QuantizationPlan(plan.weights)
        quantize_(model, plan, scale)
        model.eval()
        expected = model(images())
        names, parameters = list(model.state_dict()), list(model.parameters())
        assert bake_(model) is model
        assert torch.equal(model(images()), expected)
        assert list(model.state_dict()) == names
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())
        formats = declared_formats(model)
        assert {name: form.bits for name, form in formats.items()} == plan.weights
        for site in weight_sites(model):
            form = formats[site.name]
            assert torch.equal(
                form.decode(form.encode(site.parameter)).view_as(site.parameter), site.parameter.detach()
            )

    def test_a_trace_reads_the_declared_formats(self):
        model = net()
        quantize_(model, "W4A8")
        bake_(model)
        products = [o for o in trace(model, images()).operations if o.is_mac]
        assert [o.w_format.bits for o in products] == [8, 4, 8]

    def test_a_tied_weight_is_written_once_and_declared_for_each_owner(self):
        model = nn.ModuleList([nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)])
        model[1].weight = model[0].weight
        quantizer = TensorQuantizer(3, scale="dynamic", signed=True)
        expected = quantizer(model[0].weight.detach())
        attach_(model, {"1.weight": quantizer})
        bake_(model)
        assert torch.equal(model[1].weight, expected)
        assert model[1].weight is model[0].weight
        assert {name: form.bits for name, form in declared_formats(model).items()} == {"0.weight": 3, "1.weight": 3}

    def test_recurrent_layers_compute_with_what_was_written(self):
        layer, x = nn.LSTM(4, 3), torch.randn(5, 4)
        attach_(layer, {"weight_hh_l0": TensorQuantizer(2, signed=True)})
        expected, _ = layer(x)
        bake_(layer)
        assert layer.weight_hh_l0.unique().numel() <= 4
        assert torch.equal(layer(x)[0], expected)

    def test_a_compressed_file_holds_the_codes(self, tmp_path):
        from lightning_effnn.compression import save_compressed

        model = nn.Linear(200, 100)
        quantize_(model, QuantizationPlan({"weight": 4}))
        report = save_compressed(bake_(model), tmp_path / "model.effnn")
        assert {tensor.name: tensor.format for tensor in report.tensors}["weight"] == "int4"
        assert report.ratio > 7

    def test_refusals(self):
        with pytest.raises(ValueError, match="nothing is attached"):
            bake_(net())
        model = net()
        weight = model[3].weight.detach().clone()
        attach_(model, {"3.weight": TensorQuantizer(4), "5.weight": nn.Identity()})
        with pytest.raises(TypeError, match="the quantiser of 5.weight must have a number_format"):
            bake_(model)
        assert torch.equal(model[3].weight, weight)


def rows(report):
    return {(o.module, o.op): (o.weight_format, o.input_format, o.reason) for o in report.operations}


class TestCoverage:
    def test_all_of_it(self):
        model = net()
        quantize_(model, "W4A8")
        model(images())
        report = coverage(model, images())
        assert report.share == 1
        assert report.macs == report.covered_macs == trace(strip_(model), images(), batch_size=5).macs
        assert [o.weight_format for o in report.operations] == ["int8", "int4", "int8"]
        assert [o.input_format for o in report.operations] == ["int8", "uint8", "int8"]

    def test_reasons(self):
        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second, self.third = (nn.Linear(4, 4, bias=False) for _ in range(3))
                self.own = nn.Parameter(torch.randn(4, 4))

            def forward(self, x):
                x = self.third(self.second(self.first(x)))
                x = F.linear(x, self.first.weight)
                x = x @ self.own
                return x @ x.mT

        model = Model()
        attach_(
            model,
            {"first.weight": TensorQuantizer(4), "second.weight": TensorQuantizer(4)},
            {"first": TensorQuantizer(8)},
        )
        report = coverage(model, torch.randn(3, 4))
        assert [(o.module, o.weight, o.macs, o.reason) for o in report.operations] == [
            ("first", "first.weight", 48, ""),
            ("second", "second.weight", 48, "no quantiser on the input of second"),
            ("third", "third.weight", 48, "no quantiser on third.weight, none on the input of third"),
            (
                "",
                "first.weight",
                48,
                "no quantiser on first.weight, called as a function in the model, not as a module",
            ),
            ("", "own", 48, "own is no weight site, called as a function in the model, not as a module"),
            ("", "", 36, "two activations are multiplied in the model, not in a module of their own"),
        ]
        assert report.share == 48 / report.macs
        assert "third.weight" in str(report)
        assert f"{report.share:.1%} of 276" in str(report)

    def test_attention(self):
        model = nn.MultiheadAttention(8, 2, batch_first=True)
        quantize_(model, QuantizationPlan.uniform(model, 4, 8, first_last=None))
        x = torch.randn(2, 5, 8)
        found = [(o.weight, o.macs, o.covered, o.reason) for o in coverage(model, x, x, x).operations]
        assert found == [
            ("in_proj_weight", 2 * 5 * 8 * 24, True, ""),
            (
                "",
                2 * 2 * 5 * 5 * 4 * 2,
                False,
                "two activations are multiplied in the model, not in a module of their own",
            ),
            ("out_proj.weight", 2 * 5 * 8 * 8, False, "computed inside the model, not its input"),
        ]

    @pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
    def test_recurrent_layers(self, kind, gates):
        model, x = nn.Sequential(kind(4, 3)), torch.randn(7, 2, 4)
        quantize_(model, QuantizationPlan.uniform(model, 4, 8, first_last=None))
        first, second = coverage(model, x).operations
        assert (first.macs, first.covered) == (7 * 2 * 4 * 3 * gates, True)
        assert (second.macs, second.weight_format) == (7 * 2 * 3 * 3 * gates, "int4")
        assert second.reason == "computed inside 0, not its input"

    def test_half_precision_and_bilinear(self):
        model = nn.Bilinear(2, 3, 4)
        quantize_(model, QuantizationPlan.uniform(model, 8, 8))
        (product,) = coverage(model, torch.randn(5, 2), torch.randn(5, 3)).operations
        assert (product.macs, product.covered) == (5 * 2 * 3 * 4, True)
        model = nn.Linear(4, 4)
        quantize_(model, "W8A8")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert coverage(model, torch.randn(2, 4)).share == 1

    def test_graph_layers(self):
        geometric = pytest.importorskip("torch_geometric.nn")
        model = geometric.GCNConv(4, 3)
        attachment = quantize_(model, "W8A8")
        (product,) = coverage(model, torch.randn(6, 4), torch.randint(0, 6, (2, 9))).operations
        assert (product.module, product.macs, product.covered) == ("lin", 6 * 4 * 3, True)
        assert set(attachment.activations) == {"lin", "aggr_module"}

    @pytest.mark.parametrize("scale", ["observed", "learned", "dynamic"])
    def test_nothing_is_changed_by_looking(self, scale):
        model = nn.Sequential(net(), nn.Dropout()).train()
        model[1].eval()
        attachment = quantize_(model, "W4A8", scale)
        for _ in range(2):  # before and after anything was seen
            state = copy.deepcopy(attachment.quantizers.state_dict())
            buffers = copy.deepcopy(model.state_dict())
            modes, generator = [m.training for m in model.modules()], torch.get_rng_state()
            coverage(model, images())
            assert all(torch.equal(v, state[k]) for k, v in attachment.quantizers.state_dict().items())
            assert all(torch.equal(v, buffers[k]) for k, v in model.state_dict().items())
            assert [m.training for m in model.modules()] == modes
            assert torch.equal(torch.get_rng_state(), generator)
            assert torch.backends.mha.get_fastpath_enabled()
            assert torch._C._get_mkldnn_enabled()
            model(images())

    def test_an_exception_leaves_nothing_behind(self):
        model = net()
        quantize_(model, "W4A8")
        with pytest.raises(RuntimeError):
            coverage(model, torch.randn(2, 3))
        assert model.training
        assert not torch.nn.modules.module._global_forward_hooks
        assert coverage(model, images()).share == 1

    def test_without_quantisers_nothing_is_covered(self):
        assert coverage(net(), images()).share == 0

    def test_a_model_with_nothing_to_quantise(self):
        with pytest.raises(ValueError, match="no weight to prune or quantise"):
            coverage(nn.ReLU(), torch.ones(1))
        with pytest.raises(ValueError, match="lazy modules"):
            coverage(nn.Sequential(nn.LazyLinear(2)), torch.ones(1, 1))


def test_formats_of_a_baked_model_survive_a_copy():
    layer = nn.Linear(4, 4)
    quantize_(layer, "W8A8")
    baked = copy.deepcopy(bake_(layer))
    assert isinstance(declared_formats(baked)["weight"], FixedPoint)


@pytest.mark.parametrize("bits", [1, 4])
def test_baked_weights_with_a_scale_a_channel_are_declared_as_long_as_they_are_levels(bits):
    layer = nn.Linear(30, 5)
    with torch.no_grad():
        layer.weight.mul_(torch.logspace(-3, 0, 5)[:, None])
    attach_(layer, {"weight": TensorQuantizer(bits, axis=0, signed=True)})
    bake_(layer)
    assert declared_formats(layer)["weight"].bits == bits
    with torch.no_grad():
        layer.weight.add_(1e-4)
    assert declared_formats(layer) == {}
