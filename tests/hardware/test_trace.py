"""What a trace says of small models whose operations can be written down by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lightning_effnn.formats import BF16, FP32, FixedPoint, Ternary
from lightning_effnn.formats.tagging import aside, simulated, tag
from lightning_effnn.hardware.trace import Tracer, trace
from lightning_effnn.hardware.tracing.recorder import Recorder

INT8 = FixedPoint(8)


def nothing_remains_open():
    hooks = len(torch_module._global_forward_hooks) + len(torch_module._global_forward_pre_hooks)
    return hooks == 0 and _get_current_dispatch_mode() is None and torch.backends.mha.get_fastpath_enabled()


class Residual(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.conv(x))) + x


def by_op(result, op):
    return [o for o in result.operations if o.op == op]


class TestNames:
    def test_operations_carry_the_qualified_name_of_the_module_they_ran_in(self):
        model = nn.Sequential(Residual(), nn.Flatten(), nn.Linear(8 * 16, 2))
        result = trace(model, torch.randn(2, 8, 4, 4))
        assert [o.name for o in result.operations] == ["0.conv", "0.bn", "0.relu", "0", "2"]

    def test_parts_called_directly_keep_their_names(self):
        model = nn.ModuleDict({"net": nn.Sequential(nn.Linear(4, 4), nn.ReLU())})
        x = torch.randn(3, 4)
        with Tracer(model, example=x) as tracer:
            model["net"](x).exp()
        assert [o.name for o in tracer.trace.operations] == ["net.0", "net.1", ""]

    def test_a_module_made_on_the_fly_is_named_by_its_class_below_its_caller(self):
        class Outer(nn.Module):
            def forward(self, x):
                return nn.Hardswish()(x)

        result = trace(nn.Sequential(Outer()), torch.randn(2, 3))
        assert [o.name for o in result.operations] == ["0.Hardswish"]


class TestBatch:
    def test_a_batch_of_16_rescaled_to_1_is_the_trace_of_a_batch_of_1(self):
        model = nn.Sequential(Residual(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 5), nn.Softmax(-1)).eval()
        x = torch.randn(16, 8, 4, 4)
        many, one = trace(model, x), trace(model, x[:1])
        assert (many.traced_batch_size, many.batch_size) == (16, 1)

        def shape(o):
            return (o.name, o.op, o.extents, o.elements_in, o.elements_out, o.operations, o.fused)

        assert list(map(shape, many.operations)) == list(map(shape, one.operations))
        assert many.macs == one.macs == 16 * 8 * 8 * 9 + 32 * 5

    def test_a_deployment_batch_is_counted_whole(self):
        x = torch.randn(4, 6)
        assert [trace(nn.Linear(6, 5), x, batch_size=n).macs for n in (1, 4, 10)] == [30, 120, 300]

    def test_work_on_constants_alone_is_done_before_deployment(self):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
        result = trace(layer, torch.randn(8, 6))
        assert [o.op for o in result.operations] == ["addmm"]
        assert sorted(p.elements for p in result.parameters) == [5, 30]

    def test_a_training_step_prepares_its_constants_anew_and_does_not_rescale_that(self):
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 5))
        result = trace(layer, torch.randn(8, 6), training=True)
        norms = [o for o in result.operations if o.kind == "norm" and o.phase == "forward"]
        assert [o.elements_out for o in norms] == [30]

    def test_the_batch_may_be_in_the_second_factor(self):
        class Left(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(7, 10))

            def forward(self, x):
                return self.weight @ x.t()

        (product,) = trace(Left(), torch.randn(4, 10)).operations
        assert (product.B, product.C, product.K, product.w_constant) == (1, 10, 7, True)

    def test_the_batch_may_be_another_axis(self):
        layer, x = nn.LSTM(6, 5), torch.randn(9, 4, 6)
        assert trace(layer, x, batch_dim=1).macs == trace(layer, x[:, :1], batch_dim=1).macs

    def test_an_initial_state_of_zeros_belongs_to_the_batch(self):
        layer, x = nn.GRU(6, 5, batch_first=True), torch.randn(7, 3, 6)
        assert trace(layer, x).macs == 3 * 15 * (6 + 5)

    def test_token_ids_of_two_sentences_are_no_graph(self):
        model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 8))
        ids = torch.randint(50, (2, 6))
        assert trace(model, ids).macs == trace(model, ids[:1]).macs == 6 * 64

    def test_nodes_of_a_graph_are_no_batch(self):
        class Sum(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(4, 3)

            def forward(self, x, edge_index):
                return torch.zeros(len(x), 3).index_add(0, edge_index[1], self.lin(x)[edge_index[0]])

        x, edges = torch.randn(10, 4), torch.randint(10, (2, 30))
        assert trace(Sum(), x, edges).macs == trace(Sum(), x=x, edge_index=edges).macs == 10 * 12

    def test_an_empty_batch_is_refused(self):
        with pytest.raises(ValueError, match=r"batch is empty.*\(0, 4\)"):
            trace(nn.Linear(4, 2), torch.zeros(0, 4))
        assert nothing_remains_open()

    @pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
    def test_an_impossible_deployment_batch_is_refused(self, batch_size):
        with pytest.raises(ValueError, match="batch_size must be"):
            Tracer(nn.Linear(1, 1), batch_size)

    def test_without_an_example_the_first_module_called_tells_the_batch(self):
        model = nn.Linear(4, 3)
        with Tracer(model) as tracer:
            model(torch.randn(8, 4))
        assert (tracer.trace.macs, tracer.trace.traced_batch_size) == (12, 8)


class TestOperands:
    def test_densities_are_those_of_the_tensors(self):
        layer = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            layer.weight[0] = 0
        x = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]])
        (product,) = trace(layer, x).operations
        assert (product.w_density, product.i_density) == (pytest.approx(2 / 3), 3 / 8)
        assert product.effectual_macs == pytest.approx(12 * 2 / 3 * 3 / 8)

    def test_an_in_place_step_is_seen_before_and_after(self):
        (step,) = trace(nn.ReLU(inplace=True), torch.tensor([[1.0, -1.0, 2.0, -2.0]])).operations
        assert (step.i_density, step.o_density) == (1.0, 0.5)

    def test_large_and_strided_tensors_are_counted_exactly(self):
        x = torch.randn(3, 40, 50, 60).relu()
        for seen in (x, x.to(memory_format=torch.channels_last), x[:, ::2], x.double(), x.bfloat16()):
            (step,) = trace(nn.Tanh(), seen).operations
            assert step.i_density == int((seen != 0).sum()) / seen.numel()

    def test_a_second_factor_from_the_batch_is_no_constant(self):
        class Gram(nn.Module):
            def forward(self, x):
                return x @ x.transpose(1, 2)

        (product,) = trace(Gram(), torch.randn(4, 5, 6)).operations
        assert not product.w_constant
        assert product.extents[:4] == (5, 1, 5, 6)

    def test_untagged_tensors_have_their_dtypes_format(self):
        (product,) = trace(nn.Linear(4, 3).bfloat16(), torch.randn(1, 4).bfloat16()).operations
        assert product.w_format == product.i_format == product.o_format == BF16

    @pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
    def test_autocast_is_seen_in_the_formats(self, width):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        x = torch.randn(2, 8)
        with torch.autocast("cpu", width):
            result = trace(model, x)
        (product,) = by_op(result, "addmm")
        assert (product.w_format.bits, product.i_format.bits, product.o_format.bits) == (16, 16, 16)
        assert result.macs == 64

    def test_parameters_are_counted_once_however_often_they_are_used(self):
        layer = nn.Linear(4, 4)
        result = trace(nn.Sequential(layer, layer), torch.randn(2, 4))
        assert (result.weights, result.weight_bits, result.macs) == (20, 20 * 32, 32)
        assert {p.name for p in result.parameters} == {"0.weight", "0.bias"}


class TestTags:
    def test_a_tag_travels_through_views_and_copies(self):
        class Views(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(6, 2)

            def forward(self, x):
                tag(x, INT8)
                x = x.view(2, 2, 6).transpose(0, 1).reshape(4, 6)[:, torch.arange(6)]
                return self.lin(F.relu(torch.cat([x, x])))

        (product,) = by_op(trace(Views(), torch.randn(4, 6)), "addmm")
        assert (product.i_format, product.w_format) == (INT8, FP32)

    def test_arithmetic_and_writing_in_place_end_a_tag(self):
        class Ends(nn.Module):
            def forward(self, x):
                tag(x, INT8)
                first = x * 0.3
                x.add_(1)
                return first.exp(), x.exp()

        formats = [o.i_format for o in by_op(trace(Ends(), torch.randn(2, 3)), "exp")]
        assert formats == [FP32]

    def test_a_quantised_weight_is_stored_in_its_format(self):
        class Quantise(nn.Module):
            def forward(self, weight):
                with simulated():
                    return tag(weight.sign(), Ternary())

        layer = nn.Linear(4, 3, bias=False)
        nn.utils.parametrize.register_parametrization(layer, "weight", Quantise())
        result = trace(layer, torch.randn(5, 4))
        (product,) = result.operations
        assert (product.w_format, product.w_constant) == (Ternary(), True)
        assert (result.weights, result.weight_bits) == (12, 12 * Ternary().bits)

    def test_what_is_simulated_costs_nothing_and_formats_the_result_before_it(self):
        class Quantised(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

            def forward(self, x):
                x = self.first(x)
                with simulated():
                    x = tag((x * 4).round() / 4, INT8)
                return self.second(x)

        first, second = trace(Quantised(), torch.randn(2, 4)).operations
        assert (first.o_format, second.i_format) == (INT8, INT8)

    def test_what_runs_aside_changes_nothing(self):
        model, teacher, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4), torch.randn(2, 4)

        def run(with_teacher):
            target = torch.randn(8, 4)
            model.zero_grad()
            with Tracer(model) as tracer:
                if with_teacher:
                    with aside(), torch.no_grad():  # other inputs, not the batch, and the model itself once more
                        target = teacher(torch.ones(8, 4)) + model(tag(torch.zeros(8, 4), INT8))
                loss = nn.functional.mse_loss(model(x), target[:2])
                loss.backward()
            return tracer.trace

        alone, beside = run(False), run(True)
        assert beside == alone
        assert beside.traced_batch_size == 2

    def test_what_runs_aside_is_not_looked_at(self, monkeypatch):
        looked = []
        look = Recorder.look
        monkeypatch.setattr(Recorder, "look", lambda self, *a, **k: looked.append(1) or look(self, *a, **k))
        monkeypatch.setattr(Recorder, "pass_on", lambda self, *a, **k: looked.append(1))
        with Tracer(nn.Linear(4, 4)), aside():
            nn.Linear(4, 4)(torch.ones(2, 4)).sum().backward()
        assert not looked

    def test_tagging_without_a_trace_does_nothing(self):
        x = torch.ones(2)
        assert tag(x, INT8) is x


class TestFusion:
    def test_convolution_normalisation_activation_and_residual_are_one_chain(self):
        result = trace(Residual(), torch.randn(2, 8, 4, 4))
        assert [(o.kind, o.fused) for o in result.operations] == [
            ("conv", False),
            ("norm", True),
            ("elementwise", True),
            ("elementwise", True),
        ]
        assert [o.elements_in for o in result.operations[1:]] == [4 * 8, 0, 128]  # constants; nothing; residual

    def test_what_others_read_too_is_not_fused(self):
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(4, 4)

            def forward(self, x):
                y = self.lin(x)
                return y.exp(), y.relu()

        assert [o.fused for o in trace(Twice(), torch.randn(2, 4)).operations] == [False, False, False]

    def test_work_on_constants_between_a_step_and_its_input_is_no_hindrance(self):
        class Between(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin, self.scale = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

            def forward(self, x):
                x = self.lin(x)
                return self.scale.exp() * x

        result = trace(Between(), torch.randn(2, 4))
        assert [(o.op, o.fused) for o in result.operations] == [("addmm", False), ("mul", True)]

    def test_a_square_reads_its_input_once(self):
        class Square(nn.Module):
            def forward(self, x):
                return x * x

        (step,) = trace(Square(), torch.randn(1, 7)).operations
        assert (step.elements_in, step.elements_out, step.operations) == (7, 7, 7)


class TestHonesty:
    def test_an_unknown_operation_is_listed_and_lowers_the_coverage(self):
        @torch.library.custom_op("effnn_test::mystery", mutates_args=())
        def mystery(x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        class Odd(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin = nn.Linear(4, 4)

            def forward(self, x):
                return mystery(self.lin(x))

        result = trace(Odd(), torch.randn(2, 4))
        assert [(name, u.elements, u.modules) for name, u in result.unknown.items()] == [
            ("effnn_test.mystery.default", 16, {""})
        ]
        assert "no rule" in result.unknown["effnn_test.mystery.default"].reason
        assert result.coverage == pytest.approx(16 / (16 + 8))
        assert result.macs == 16

    def test_a_profilers_mark_is_no_operation(self):
        class Marked(nn.Module):
            def forward(self, x):
                with torch.profiler.record_function("here"):
                    return x.exp()

        result = trace(Marked(), torch.randn(2, 4))
        assert ([o.op for o in result.operations], result.unknown) == (["exp"], {})

    def test_a_loss_is_kept_but_not_part_of_an_inference(self):
        model, loss = nn.Linear(4, 3), nn.MSELoss()
        whole = nn.ModuleDict({"model": model, "loss": loss})
        x, y = torch.randn(2, 4), torch.randn(2, 3)
        with Tracer(whole, example=(x, y)) as tracer:
            loss(model(x), y)
            F.cross_entropy(model(x), torch.tensor([0, 1]))
        assert tracer.trace.macs == 24
        assert {o.op for o in tracer.trace.operations if o.phase == "loss"} == {
            "mse_loss",
            "nll_loss_forward",
            "_log_softmax",
        }
        assert {leaf.name for leaf in tracer.trace.leaves} == {"model"}

    def test_torchmetrics_are_no_part_of_an_inference(self):
        metrics = pytest.importorskip("torchmetrics")
        model = nn.ModuleDict({"net": nn.Linear(4, 3), "accuracy": metrics.Accuracy("multiclass", num_classes=3)})
        x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
        with Tracer(model, example=(x, y)) as tracer:
            model["accuracy"](model["net"](x), y)
        assert {o.op for o in tracer.trace.operations if o.phase == "forward"} == {"addmm"}

    def test_lazy_modules_are_named(self):
        with pytest.raises(ValueError, match=r"lazy modules.*\(0, 1.conv\).*run one batch"):
            trace(
                nn.Sequential(nn.LazyLinear(3), nn.ModuleDict({"conv": nn.LazyConv2d(3, 1)})),
                torch.randn(2, 4),
            )


class TestLeaves:
    def test_a_leaf_is_counted_as_the_sponge_papers_code_counts_it(self):
        model = nn.Sequential(
            nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
            nn.Linear(54, 5),
        )  # fmt: skip
        model.eval()
        x = torch.randn(2, 4, 8, 8)
        conv, norm, relu, pool, _, linear = trace(model, x).leaves
        size = 2 * 6 * 6 * 6
        assert conv.computations == size * 9 * 4
        assert (conv.inputs_total, conv.outputs_total, conv.parameters_total) == (512, size, 6 * 2 * 9)
        assert norm.computations == 4 * size
        assert (norm.parameters_total, norm.parameters_nonzero) == (4 * 6 + 1 + 2 * 6, 6 + 6 + 6)
        hidden = model[:3](x)
        assert relu.outputs_nonzero == int((hidden.abs() > 2**-126).sum())
        assert pool.computations == (size // 4) * 4
        assert linear.computations == 2 * 54 * 5

    def test_an_embedding_reads_its_rows_and_an_adaptive_pool_its_inputs(self):
        (leaf,) = trace(nn.Embedding(9, 4), torch.tensor([[1, 2, 3]])).leaves
        assert leaf.parameters_total == 36 + 4 * 3
        (leaf,) = trace(nn.AdaptiveAvgPool2d(1), torch.randn(1, 2, 4, 4)).leaves
        assert leaf.computations == 32


class TestContexts:
    def test_inference_mode_gives_the_trace_of_no_grad(self):
        models = (
            (Residual().eval(), torch.randn(2, 8, 4, 4)),
            (nn.TransformerEncoderLayer(16, 2, 16, batch_first=True).eval(), torch.randn(2, 5, 16)),
            (nn.GRU(6, 5, 2, batch_first=True, bidirectional=True), torch.randn(2, 7, 6)),
            (nn.LSTM(6, 5, 2, batch_first=True), torch.randn(2, 7, 6)),
        )
        for model, x in models:
            plain = trace(model, x)
            with torch.inference_mode():
                inference = trace(model, x)
            assert inference.macs == plain.macs
            assert (inference.unknown, inference.coverage) == ({}, 1.0)
            assert len(inference.leaves) == len(plain.leaves)

    def test_the_modules_own_modes_come_back(self):
        model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3))
        model[1].eval()
        trace(model, torch.randn(4, 3))
        assert [m.training for m in model] == [True, False]
        assert model.training

    def test_an_exception_comes_out_unchanged_and_the_next_batch_is_traced(self):
        class Fragile(nn.Module):
            def __init__(self):
                super().__init__()
                self.lin, self.broken = nn.Linear(4, 4), True

            def forward(self, x):
                x = self.lin(x)
                if self.broken:
                    raise KeyError("mine")
                return x

        model, x = nn.Sequential(Fragile()), torch.randn(2, 4)
        tracer = Tracer(model, example=x)
        with pytest.raises(KeyError, match="mine"), tracer:
            model(x)
        assert nothing_remains_open()
        with pytest.raises(RuntimeError, match="no trace yet"):
            _ = tracer.trace
        model[0].broken = False
        with tracer:
            model(x)
        assert tracer.trace.macs == 16
        assert nothing_remains_open()

    def test_an_abandoned_tracer_leaves_nothing_behind(self):
        tracer = Tracer(nn.Linear(2, 2))
        tracer.__enter__()
        with pytest.raises(RuntimeError, match="already open"):
            tracer.__enter__()
        tracer.abandon()
        tracer.abandon()
        assert nothing_remains_open()

    def test_no_tensor_is_kept_alive(self):
        import weakref

        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        with Tracer(model) as tracer, torch.no_grad():
            hidden = model[0](torch.randn(2, 4))
            gone = weakref.ref(hidden)
            del hidden
            assert gone() is None
        assert tracer.trace.macs == 16

    def test_a_compiled_model_is_traced_as_the_eager_one(self):
        model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.randn(2, 4)
        compiled = torch.compile(model, backend="eager")
        compiled(x)
        result = trace(compiled, x)
        assert [(o.name, o.op) for o in result.operations] == [("0", "addmm"), ("1", "relu")]

    def test_functional_transforms_can_be_traced(self):
        model, x = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(5, 2)
        with Tracer(model, example=x) as tracer:
            torch.func.vmap(torch.func.jacrev(model))(x)
        assert tracer.trace.coverage > 0.9
