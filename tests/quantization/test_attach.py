"""Quantisers on models: what runs is quantised, what is kept is not touched."""

import copy
import io

import pytest
import torch
from helpers import Tied
from torch import nn
from torch.nn import functional as F

from lightning_effnn import hardware
from lightning_effnn.quantization import (
    Attachment,
    TensorQuantizer,
    activation_sites,
    attach_,
    strip_,
    weight_sites,
)
from lightning_effnn.quantization.hooks import hosts_of


def everywhere(model, weights=4, activations=8, scale="observed"):
    return attach_(
        model,
        {site.name: TensorQuantizer(weights, scale="dynamic", signed=True) for site in weight_sites(model)},
        {site.name: TensorQuantizer(activations, scale=scale) for site in activation_sites(model)},
    )


def levels(weight, bits=4):
    return TensorQuantizer(bits, scale="dynamic", signed=True)(weight)


def mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 2, 2), nn.Flatten())


class Sequence(nn.Module):
    def __init__(self, kind=nn.LSTM):
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.rnn = kind(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(10, 2)

    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens))[0].mean(1))


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x, memory=None):
        memory = x if memory is None else memory
        return self.attention(x, memory, value=memory, need_weights=False)[0]


def tokens():
    return torch.randint(0, 10, (3, 7), generator=torch.Generator().manual_seed(0))


MODELS = {
    "mlp": (mlp, lambda: torch.randn(5, 6)),
    "cnn": (cnn, lambda: torch.randn(3, 1, 6, 6)),
    "lstm": (Sequence, tokens),
    "gru": (lambda: Sequence(nn.GRU), tokens),
    "attention": (Attention, lambda: torch.randn(2, 5, 8)),
    "separate projections": (lambda: Attention(kdim=8, vdim=8), lambda: torch.randn(2, 5, 8)),
    "tied": (Tied, tokens),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), lambda: torch.randn(2, 5, 8)),
}


@pytest.fixture(params=MODELS)
def case(request):
    torch.manual_seed(0)
    build, example = MODELS[request.param]
    return build(), example()


class TestAnyModel:
    def test_the_model_is_the_same_to_everyone_else_while_attached_and_after(self, case):
        model, x = case
        model.eval()
        before, state = model(x), copy.deepcopy(model.state_dict())
        parameters = [(name, id(p)) for name, p in model.named_parameters()]
        modules = [name for name, _ in model.named_modules()]
        attachment = everywhere(model)
        quantised = model(x)
        assert not torch.equal(quantised, before)
        for _ in range(2):
            assert list(model.state_dict()) == list(state)
            assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
            assert [(name, id(p)) for name, p in model.named_parameters()] == parameters
            assert [name for name, _ in model.named_modules()] == modules
            attachment.strip()
        assert torch.equal(model(x), before)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert not any(m._forward_hooks_always_called or m._forward_pre_hooks_with_kwargs for m in model.modules())

    def test_weights_are_used_as_their_levels(self, case):
        model, x = case
        model.eval()
        by_hand = copy.deepcopy(model)
        with torch.no_grad():
            for site in weight_sites(by_hand):
                site.parameter.copy_(levels(site.parameter))
        attach_(model, {s.name: TensorQuantizer(4, scale="dynamic", signed=True) for s in weight_sites(model)})
        torch.testing.assert_close(model(x), by_hand(x), rtol=1e-5, atol=1e-6)
        with torch.no_grad():  # where fused kernels are used
            torch.testing.assert_close(model(x), by_hand(x), rtol=1e-5, atol=1e-6)

    def test_an_optimiser_built_before_trains_the_latent_weights(self, case):
        model, x = case
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        everywhere(model)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        model(x).square().sum().backward()
        optimizer.step()
        for site in weight_sites(model):
            assert not torch.equal(site.parameter, before[site.name]), site.name
            assert site.parameter.unique().numel() > 16  # not levels

    def test_a_copy_is_quantised_by_itself(self, case):
        model, x = case
        attachment = everywhere(model)
        model(x)
        other = copy.deepcopy(model).eval()
        model.eval()
        assert torch.equal(other(x), model(x))
        copied = Attachment(other)
        assert list(copied.weights) == list(attachment.weights)
        assert not {id(q) for q in copied.quantizers.modules()} & {id(q) for q in attachment.quantizers.modules()}
        before = model(x)
        copied.strip()
        assert not torch.equal(other(x), before)
        assert torch.equal(model(x), before)

    def test_a_saved_module_is_quantised_when_loaded(self, case):
        model, x = case
        everywhere(model)
        model(x)
        model.eval()
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
        assert torch.equal(other(x), model(x))
        strip_(other)
        strip_(model)
        assert torch.equal(other(x), model(x))

    def test_state_goes_through_the_holder(self, case):
        model, x = case
        attachment = everywhere(model, scale="learned")
        model(x)
        state = attachment.quantizers.state_dict()
        build = copy.deepcopy(strip_(model))
        other = everywhere(build, scale="learned")
        other.quantizers.load_state_dict(state)
        expected = everywhere(model)
        expected.strip()
        again = everywhere(model, scale="learned")
        again.quantizers.load_state_dict(state)
        model.eval()
        build.eval()
        assert torch.equal(build(x), model(x))
        assert len(list(other.quantizers.parameters())) == len(other.activations)


class TestExceptions:
    def test_an_exception_in_forward_leaves_the_parameters_in_place(self):
        model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 3), nn.Linear(7, 2))
        everywhere(model)
        before = dict(model.named_parameters())
        x = torch.randn(3, 4)
        with pytest.raises(TypeError):
            model(x)  # an LSTM's output is a tuple
        with pytest.raises(RuntimeError):
            model[0](torch.randn(3, 5))
        after = dict(model.named_parameters())
        assert all(after[name] is p for name, p in before.items())
        assert all(w is p for w, p in zip(model[1]._flat_weights, model[1].parameters(), strict=True))

    def test_a_quantiser_that_raises_leaves_the_parameters_in_place(self):
        class Raises(nn.Module):
            def forward(self, x):
                raise ArithmeticError

        model = nn.LSTM(4, 3)
        attach_(model, {"weight_ih_l0": TensorQuantizer(4), "weight_hh_l0": Raises()})
        before = list(model.parameters())
        with pytest.raises(ArithmeticError):
            model(torch.randn(2, 4))
        assert all(a is b for a, b in zip(model.parameters(), before, strict=True))

    def test_what_is_interrupted_is_put_back_by_the_next_call_or_by_strip(self):
        class Interrupted(nn.Linear):
            stop = True

            def forward(self, x):
                if self.stop:
                    raise KeyboardInterrupt  # torch does not run hooks for what is no Exception
                return super().forward(x)

        layer = Interrupted(4, 4)
        latent = layer.weight
        everywhere(layer)
        x = torch.randn(2, 4)
        with pytest.raises(KeyboardInterrupt):
            layer(x)
        layer.stop = False
        with torch.no_grad():
            latent.mul_(-3)
        layer(x).sum().backward()
        assert layer.weight is latent
        assert latent.grad is not None
        layer.stop = True
        with pytest.raises(KeyboardInterrupt):
            layer(x)
        strip_(layer)
        assert layer.weight is latent


class TestCalls:
    def test_a_module_called_twice(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(4, 4)

            def forward(self, x):
                return self.layer(self.layer(x))

        model, x = Twice().eval(), torch.randn(3, 4)
        attach_(model, {"layer.weight": TensorQuantizer(4, scale="dynamic", signed=True)})
        weight = levels(model.layer.weight)
        expected = F.linear(F.linear(x, weight, model.layer.bias), weight, model.layer.bias)
        assert torch.equal(model(x), expected)
        model(x).sum().backward()
        assert model.layer.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_module_that_calls_itself(self, fails):
        class Recursive(nn.Linear):
            def forward(self, x, depth=2):
                if depth == 0:
                    if fails:
                        raise ArithmeticError
                    return super().forward(x)
                try:
                    inner = self(x, depth - 1)
                except ArithmeticError:
                    inner = x
                return inner + F.linear(x, self.weight)  # after the inner call: still the levels

        layer, x = Recursive(4, 4), torch.randn(3, 4)
        latent = layer.weight
        attach_(layer, {"weight": TensorQuantizer(4, scale="dynamic", signed=True)})
        weight = levels(latent)
        innermost = x if fails else F.linear(x, weight, layer.bias)
        torch.testing.assert_close(layer(x), innermost + 2 * F.linear(x, weight))
        assert layer.weight is latent

    def test_inputs_by_keyword_and_other_arguments(self):
        model = nn.MultiheadAttention(8, 2, batch_first=True).eval()
        attachment = attach_(model, activations={"": TensorQuantizer(2, signed=True)})
        x, mask = torch.randn(2, 5, 8), torch.randn(5, 5)
        with attachment.calibrating():
            by_keyword = model(attn_mask=mask, value=x, key=x, query=x)[0]
        coarse = attachment.activations[""](x)
        assert torch.equal(model(x, x, x, attn_mask=mask)[0], by_keyword)
        attachment.strip()
        torch.testing.assert_close(model(coarse, coarse, coarse, attn_mask=mask)[0], by_keyword)

    def test_self_attention_quantises_once_and_stays_self_attention(self):
        class Counts(nn.Module):
            calls = 0

            def forward(self, x):
                Counts.calls += 1
                return x * 1.0

        model = Attention()
        attach_(model, activations={"attention": Counts()})
        model(torch.randn(2, 5, 8))
        assert Counts.calls == 1
        model(torch.randn(2, 5, 8), torch.randn(2, 3, 8))
        assert Counts.calls == 3

    def test_packed_sequences(self):
        model, x = nn.GRU(4, 3), torch.randn(5, 2, 4)
        attachment = everywhere(model)
        packed = nn.utils.rnn.pack_padded_sequence(x, [5, 3])
        model.train()
        model(packed)
        model.eval()
        rounded = attachment.activations[""](x)
        expected, _ = model(nn.utils.rnn.pack_padded_sequence(rounded, [5, 3]))
        assert torch.equal(model(packed)[0].data, expected.data)

    def test_functional_calls_quantise_what_they_are_given(self):
        layer, x = nn.LSTM(4, 3), torch.randn(2, 4)
        attach_(layer, {"weight_ih_l0": TensorQuantizer(4, scale="dynamic", signed=True)})
        own = dict(layer.named_parameters())
        other = {name: torch.randn_like(p) for name, p in own.items()}
        found, _ = torch.func.functional_call(layer, other, (x,))
        assert all(p is own[name] for name, p in layer.named_parameters())
        strip_(layer)
        quantised = other | {"weight_ih_l0": levels(other["weight_ih_l0"])}
        expected, _ = torch.func.functional_call(layer, quantised, (x,))
        torch.testing.assert_close(found, expected)

    @pytest.mark.parametrize("scale", ["learned", "observed"])
    def test_compiled_models_run_as_the_eager_one_in_one_graph(self, scale):
        model, x = Attention(), torch.randn(2, 5, 8)
        everywhere(model, scale=scale)
        model(x)
        model.eval()
        expected = model(x)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        compiled(x).sum().backward()
        assert all(isinstance(p, nn.Parameter) and p.grad is not None for p in model.parameters())

    def test_padded_batches_through_an_encoder_in_eval_mode(self):
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.TransformerEncoder(layer, 2).eval()
        x, padding = torch.randn(3, 5, 8), torch.zeros(3, 5, dtype=torch.bool)
        padding[0, 3:] = True
        with torch.no_grad():
            before = model(x, src_key_padding_mask=padding)
            attachment = everywhere(model)
            fused = model(x, src_key_padding_mask=padding)
        torch.testing.assert_close(fused, model(x, src_key_padding_mask=padding))
        attachment.strip()
        with torch.no_grad():
            assert torch.equal(model(x, src_key_padding_mask=padding), before)

    def test_hooks_of_others_stay(self):
        model, seen = mlp(), []
        model[0].register_forward_hook(lambda *_: seen.append("hook"))
        everywhere(model)
        model(torch.randn(1, 6))
        strip_(model)
        model(torch.randn(1, 6))
        assert seen == ["hook", "hook"]


class TestPrecision:
    def test_half_precision(self):
        model = mlp()
        everywhere(model, scale="learned")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(torch.randn(5, 6))
        assert out.dtype == torch.bfloat16
        out.float().sum().backward()
        assert model[0].weight.grad.dtype == torch.float32
        assert model.to(torch.bfloat16)(torch.randn(5, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16


class TestGraphs:
    @pytest.mark.parametrize("kind", ["GCNConv", "GATConv", "SAGEConv"])
    def test_messages_are_quantised_before_they_are_summed(self, kind):
        geometric = pytest.importorskip("torch_geometric.nn")
        conv = getattr(geometric, kind)(4, 3)
        x, edges = torch.randn(6, 4), torch.randint(0, 6, (2, 20))
        before, fuse = conv(x, edges), conv.fuse
        seen = []
        conv.aggr_module.register_forward_hook(lambda _, args, out: seen.append(args[0]))
        attachment = attach_(conv, activations={"aggr_module": TensorQuantizer(2, signed=True)})
        conv(x, edges)
        assert seen[0].unique().numel() <= 4
        conv(x, edges[:, :0])  # a graph without edges
        attachment.strip()
        assert conv.fuse == fuse
        assert torch.equal(conv(x, edges), before)

    def test_a_fused_layer_shows_its_messages_while_attached(self):
        geometric = pytest.importorskip("torch_geometric.nn")
        conv = geometric.SAGEConv(4, 3)
        x = torch.randn(6, 4)
        adjacency = (torch.rand(6, 6) > 0.5).float().to_sparse_csr()
        before = conv(x, adjacency)
        attachment = attach_(conv, activations={"aggr_module": TensorQuantizer(2)})
        conv(x, adjacency)
        assert attachment.activations["aggr_module"].initialised
        attachment.strip()
        assert torch.equal(conv(x, adjacency), before)


class TestTrace:
    def test_a_trace_sees_the_formats(self, case):
        model, x = case
        everywhere(model, weights=4, activations=8)
        with torch.no_grad():
            model(x)
        names = {name.rpartition(".")[0] for site in weight_sites(model) for name in site.names}
        products = [o for o in hardware.trace(model, x).operations if o.is_mac and o.w_constant and o.name in names]
        assert products
        assert {o.w_format.bits for o in products} == {4}
        first = {}
        for product in products:  # later ones in attention and recurrent layers are computed inside
            first.setdefault(product.name, product)
        inputs = {name: o.i_format.bits for name, o in first.items() if not name.endswith("out_proj")}
        assert inputs
        assert set(inputs.values()) == {8}

    def test_stored_weights_have_their_bits(self):
        model = mlp()
        everywhere(model)
        trace = hardware.trace(model, torch.randn(1, 6))
        assert {w.name: w.format.bits for w in trace.parameters}["0.weight"] == 4


class TestRefusals:
    def test_unknown_names_are_listed_with_the_nearest(self):
        with pytest.raises(ValueError, match=r"weights must name sites.*'0.weigth' \(did you mean '0.weight'\?\)"):
            attach_(mlp(), {"0.weigth": TensorQuantizer(4), "2.weight": TensorQuantizer(4)})
        with pytest.raises(ValueError, match="activations must name sites of the model, got '1'"):
            attach_(mlp(), activations={"1": TensorQuantizer(4)})

    def test_twice(self):
        model = mlp()
        everywhere(model)
        with pytest.raises(ValueError, match="has quantisers attached already: strip_ it first"):
            everywhere(model)

    def test_what_is_no_quantiser(self):
        with pytest.raises(TypeError, match=r"weights\['0.weight'\] must be a module such as TensorQuantizer, got 4"):
            attach_(mlp(), {"0.weight": 4})

    def test_two_quantisers_for_a_tied_weight(self):
        with pytest.raises(ValueError, match="give one quantiser for both"):
            attach_(Tied(), {"embedding.weight": TensorQuantizer(4), "head.weight": TensorQuantizer(8)})

    def test_nothing(self):
        with pytest.raises(ValueError, match="at least one quantiser"):
            attach_(mlp())
        with pytest.raises(ValueError, match="no weight to prune or quantise"):
            attach_(nn.ReLU(), {"weight": TensorQuantizer(4)})
        with pytest.raises(ValueError, match=r"lazy modules that are not initialised \(0\)"):
            attach_(nn.Sequential(nn.LazyLinear(3)), {"0.weight": TensorQuantizer(4)})
        with pytest.raises(ValueError, match="nothing is attached to this Sequential"):
            Attachment(mlp())
        assert list(hosts_of(strip_(mlp()))) == []
