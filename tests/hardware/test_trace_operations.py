"""Operations beyond the usual layers: they are counted exactly, or what could be hidden in them is said."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import register_flop_formula

from lightning_effnn import hardware
from lightning_effnn.formats import BF16, FixedPoint
from lightning_effnn.hardware.tracing import dispatch
from lightning_effnn.hardware.tracing.pieces import HANDLERS
from lightning_effnn.hardware.tracing.rules import _RULES


@torch.library.custom_op("effnn_test::product", mutates_args=())
def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


@torch.library.custom_op("effnn_test::halved", mutates_args=())
def halved(a: torch.Tensor) -> torch.Tensor:
    return a / 2


class Calls(nn.Module):
    """``x`` by a weight, in an operation of another library."""

    def __init__(self, operation=product, width=16):
        super().__init__()
        self.first = nn.Linear(width, width, bias=False)
        self.weight = nn.Parameter(torch.randn(width, width))
        self.operation = operation

    def forward(self, x):
        return self.operation(self.first(x), self.weight)


@pytest.fixture
def no_rules_left():
    before = dict(_RULES)
    yield
    _RULES.clear()
    _RULES.update(before)


class TestUnknown:
    @pytest.mark.parametrize(("width", "rows"), [(16, 4), (64, 64), (32, 256)])
    def test_coverage_falls_by_the_product_that_an_unknown_operation_could_be(self, width, rows):
        result = hardware.trace(Calls(width=width), torch.randn(1, rows, width)[0], inferences=1)
        assert result.coverage == pytest.approx(1 / 2)
        assert "effnn_test.product.default" in result.unknown

    def test_an_unknown_step_on_elements_counts_as_one(self):
        result = hardware.trace(nn.Sequential(nn.Linear(8, 8), Halve()), torch.randn(2, 8))
        assert result.coverage == pytest.approx(64 / (64 + 16))

    def test_a_rule_that_was_registered_is_exact_and_scaled_to_one_inference(self, no_rules_left):
        hardware.register_cost(
            torch.ops.effnn_test.product, lambda a, b, out: {"B": a.shape[0], "C": a.shape[1], "K": b.shape[1]}
        )
        results = [hardware.trace(Calls(), torch.randn(n, 16)) for n in (1, 3, 8)]
        assert [(r.macs, r.coverage, r.unknown) for r in results] == [(2 * 256, 1.0, {})] * 3

    def test_a_rule_may_say_how_many_simple_operations_there_are(self, no_rules_left):
        hardware.register_cost("effnn_test::halved", lambda a, out: {"operations": a.numel()})
        result = hardware.trace(nn.Sequential(nn.Linear(8, 8), Halve()), torch.randn(2, 8))
        assert result.coverage == 1.0
        assert [o.operations for o in result.operations if o.op == "effnn_test::halved"] == [8]

    @pytest.mark.parametrize("cost", [{"M": 4}, {"B": 1.5}, 7, {"B": -1}])
    def test_a_rule_that_returns_something_else_is_refused(self, no_rules_left, cost):
        hardware.register_cost("effnn_test::product", lambda a, b, out: cost)
        with pytest.raises(ValueError, match=r"cost registered for effnn_test::product returned .* B, G, K, C"):
            hardware.trace(Calls(), torch.randn(2, 16), strict=True)

    @pytest.mark.parametrize(("op", "rule"), [(3, len), ("product", len), ("a::b", 5)])
    def test_what_names_no_operation_or_is_no_rule_is_refused(self, op, rule):
        with pytest.raises(TypeError, match="is needed"):
            hardware.register_cost(op, rule)

    def test_torchs_own_registry_of_operation_counts_is_asked(self):
        @torch.library.custom_op("effnn_test::counted", mutates_args=())
        def counted(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return a @ b

        @register_flop_formula(torch.ops.effnn_test.counted)
        def flops(a_shape, b_shape, *args, out_shape=None, **kwargs):
            return 2 * a_shape[0] * a_shape[1] * b_shape[1]

        results = [hardware.trace(Calls(counted), torch.randn(n, 16)) for n in (1, 4)]
        assert [(r.macs, r.unknown) for r in results] == [(512, {})] * 2


class Halve(nn.Module):
    def forward(self, x):
        return halved(x)


class TestStrict:
    @pytest.fixture
    def broken(self, monkeypatch):
        def fails(call):
            raise KeyError("of the handler")

        dispatch._KINDS.clear()
        monkeypatch.setitem(HANDLERS, "mm", fails)
        yield
        dispatch._KINDS.clear()

    def test_a_handlers_exception_comes_out_of_a_strict_trace(self, broken):
        with pytest.raises(KeyError, match="of the handler"):
            hardware.trace(nn.Linear(4, 4, bias=False), torch.randn(2, 4), strict=True)

    def test_outside_it_the_operation_is_unknown_with_the_reason(self, broken, monkeypatch):
        monkeypatch.setattr(dispatch, "STRICT", False)
        result = hardware.trace(nn.Linear(4, 4, bias=False), torch.randn(2, 4))
        assert "of the handler" in result.unknown["aten.mm.default"].reason
        assert result.coverage < 0.1


class TestProducts:
    def test_rows_sorted_by_expert_cost_what_a_loop_over_the_experts_costs(self):
        class Experts(nn.Module):
            def __init__(self, grouped):
                super().__init__()
                self.up, self.grouped = nn.Parameter(torch.randn(3, 16, 8)), grouped

            def forward(self, x):
                ends = torch.tensor([2, 2, 8], dtype=torch.int32)
                if self.grouped:
                    return F.grouped_mm(x, self.up, offs=ends)
                return torch.cat([x[:2] @ self.up[0], x[2:] @ self.up[2]])

        x = torch.randn(8, 16)
        grouped, loop = (hardware.trace(Experts(g), x, inferences=1) for g in (True, False))
        assert grouped.macs == loop.macs == 8 * 16 * 8
        assert grouped.unknown == {}
        assert sorted(o.B for o in grouped.operations if o.is_mac) == [2, 6]

    def test_packed_integer_weights_are_priced_as_integers(self):
        class Packed(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("w", torch.randint(-9, 9, (32, 64), dtype=torch.int8))
                self.register_buffer("s", torch.ones(32, dtype=torch.bfloat16))

            def forward(self, x):
                return torch._weight_int8pack_mm(x, self.w, self.s)

        result = hardware.trace(Packed(), torch.randn(4, 64).bfloat16())
        (op,) = [o for o in result.operations if o.is_mac]
        assert (op.macs, op.w_format.bits, op.i_format) == (32 * 64, 8, BF16)
        assert {p.name: p.bits for p in result.parameters} == {"w": 32 * 64 * 8}

    def test_keys_that_query_heads_share_are_read_once_however_they_are_shared(self):
        class Shared(nn.Module):
            def __init__(self, way):
                super().__init__()
                self.way = way

            def forward(self, q, k):
                if self.way == "repeated":
                    k = k[:, :, None].expand(-1, -1, 3, -1, -1).reshape(q.shape)
                if self.way == "kernel":
                    return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
                if self.way == "interleaved":
                    k = k.repeat_interleave(3, 1)
                return (q @ k.transpose(-1, -2)).softmax(-1) @ k

        for n in (1, 2, 5):
            q, k = torch.randn(n, 6, 4, 8), torch.randn(n, 2, 4, 8)
            read = {
                way: {(o.macs, o.weights) for o in hardware.trace(Shared(way), q, k).operations if o.is_mac}
                for way in ("repeated", "interleaved", "kernel")
            }
            assert all(products == {(6 * 4 * 4 * 8, 2 * 4 * 8)} for products in read.values())

    @pytest.mark.parametrize(
        ("call", "macs"),
        [
            (torch.linalg.inv, 8**3), (torch.linalg.cholesky, 8**3 / 6), (torch.linalg.det, 8**3 / 3),
            (lambda a: torch.linalg.solve(a, a[..., :2]), 8**3 / 3 + 8 * 8 * 2), (torch.linalg.eigvalsh, 4.5 * 8**3),
        ],
    )  # fmt: skip
    def test_linear_algebra_is_no_step_on_elements(self, call, macs):
        class Net(nn.Module):
            def forward(self, x):
                return call(x @ x.transpose(1, 2) + 9 * torch.eye(8))

        for n in (1, 3):
            result = hardware.trace(Net(), torch.randn(n, 8, 8))
            assert result.unknown == {}
            assert result.macs - 8**3 == pytest.approx(macs, abs=1)

    def test_layers_that_torch_ao_quantised_count_their_packed_weights(self):
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            pytest.skip("this build of torch has no kernels for quantised layers")
        layer = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(16, 8)), {nn.Linear}, torch.qint8)
        result = hardware.trace(layer, torch.randn(3, 16))
        assert (result.macs, result.unknown) == (128, {})
        assert {o.w_format for o in result.operations if o.is_mac} == {FixedPoint(8)}


class TestControlFlow:
    @pytest.mark.parametrize(("sign", "macs"), [(1.0, 2 * 16), (-1.0, 16)])
    def test_the_branch_that_is_taken_is_counted(self, sign, macs):
        class Branches(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x):
                twice = lambda x: self.b(self.a(x))  # noqa: E731
                return torch.cond(x.sum() > 0, twice, self.a, (x,))

        result = hardware.trace(Branches(), sign * torch.ones(2, 4))
        assert (result.macs, result.unknown) == (macs, {})

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_sequences_of_unequal_length_are_counted_by_their_lengths(self):
        class Attend(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(8, 8)

            def forward(self, x):
                x = self.lin(x).unsqueeze(1)
                return F.scaled_dot_product_attention(x, x, x)

        nested = torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)])
        result = hardware.trace(Attend(), nested)
        assert result.traced_batch_size == 2
        assert result.macs == (8 * 64 + 2 * (9 + 25) * 8) // 2
        assert result.unknown == {}


def test_what_is_no_number_is_no_zero():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = torch.tensor([[0.0, float("nan"), 1.0, float("-inf")]], dtype=dtype)
        (step,) = hardware.trace(nn.Tanh(), x).operations
        assert step.i_density == 3 / 4
    large = torch.from_numpy(np.full((1, 300, 300), np.nan, np.float32))
    (step,) = hardware.trace(nn.Tanh(), large).operations
    assert step.i_density == 1


def test_the_text_of_a_trace_is_short_and_its_table_escapes_names():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("<b>", nn.Linear(4, 4))

        def forward(self, x):
            return self._modules["<b>"](x)

    result = hardware.trace(Odd(), torch.randn(2, 4))
    assert "16 MACs" in repr(result)
    assert len(repr(result)) < 300
    assert "&lt;b&gt;" in result._repr_html_()


def test_parameters_that_share_their_memory_are_told_apart():
    torch.manual_seed(0)
    apart = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    together = copy.deepcopy(apart)
    whole, start = torch.cat([p.detach().flatten() for p in together.parameters()]), 0
    for parameter in together.parameters():
        parameter.data = whole[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    found = [hardware.trace(net, torch.rand(2, 8)) for net in (apart, together)]
    assert [(t.macs, t.weights, t.weight_bits) for t in found] == [(128, 144, 4608)] * 2
    assert {p.name for p in found[1].parameters} == {name for name, _ in together.named_parameters()}
