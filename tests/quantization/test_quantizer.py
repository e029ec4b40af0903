"""One tensor in few levels."""

import copy
import io
import math

import hypothesis.extra.numpy as arrays
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_effnn.formats import FP32, Binary, FixedPoint
from lightning_effnn.hardware import Tracer
from lightning_effnn.quantization import TensorQuantizer, attach_
from lightning_effnn.quantization.clipping import least_error_scale
from lightning_effnn.quantization.rounding import grid_of, round_to_levels

SOURCES = ("learned", "observed", "dynamic")
tensors = arrays.arrays(
    "float32", st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=st.floats(-1e3, 1e3, width=32)
).map(torch.from_numpy)
widths = st.sampled_from([1, 2, 3, 4, 8, 16])


def fixed(bits, scale, signed=True):
    """A quantiser with a given scale, that keeps it."""
    quantizer = TensorQuantizer(bits, signed=signed)
    state = {"scale": torch.tensor(scale), "initialised": torch.tensor(True), "is_signed": torch.tensor(signed)}
    quantizer.load_state_dict(state)
    return quantizer.eval()


class TestLevels:
    @given(x=tensors, bits=widths, source=st.sampled_from(SOURCES))
    @example(x=torch.tensor([[13.0, -4e-45]]), bits=1, source="learned")  # less than the scale by all of float32
    @settings(max_examples=60)
    def test_levels_are_those_of_the_format_bit_for_bit(self, x, bits, source):
        quantizer = TensorQuantizer(bits, scale=source)
        levels = quantizer(x)
        if not quantizer.initialised:  # zeros only, or so small that their mean is zero
            assert not x.abs().mean()
            return
        assert torch.equal(levels, quantizer.number_format.quantize(x))
        assert torch.equal(levels, quantizer.number_format.quantize(levels))
        assert levels.unique().numel() <= 2**bits

    @given(x=tensors, bits=widths, scale=st.floats(2**-10, 1024, width=32), signed=st.booleans())
    @settings(max_examples=60)
    def test_quantising_twice_with_one_scale_changes_nothing(self, x, bits, scale, signed):
        quantizer = fixed(bits, scale, signed)
        once = quantizer(x)
        assert torch.equal(quantizer(once), once)

    @given(x=tensors, bits=widths, scale=st.floats(0.015625, 128, width=32), signed=st.booleans())
    @settings(max_examples=60)
    def test_the_gradient_is_the_identity_inside_the_range_and_zero_outside(self, x, bits, scale, signed):
        x.requires_grad_()
        upstream = torch.randn_like(x)
        (gradient,) = torch.autograd.grad(fixed(bits, scale, signed)(x), x, upstream)
        if bits == 1 and signed:
            inside = (x / scale).abs() <= 1
            near = ((x / scale).abs() - 1).abs() < 1e-5
        else:
            low, high = FixedPoint(bits, signed=signed).integer_range
            inside = (x / scale >= low - 0.5) & (x / scale <= high + 0.5)
            near = ((x / scale - low + 0.5).abs() < 1e-2) | ((x / scale - high - 0.5).abs() < 1e-2)
        expected = torch.where(inside, upstream, 0.0)
        assert torch.equal(gradient[~near], expected[~near])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_a_tie_between_two_levels_goes_to_the_even_one(self, dtype):
        x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], dtype=dtype) / 4
        levels = [-2, -2, 0, 0, 2, 2, 4]
        assert (fixed(4, 0.25)(x) * 4).tolist() == levels
        assert (fixed(4, 0.25, signed=False)(x[3:]) * 4).tolist() == levels[3:]
        assert (FixedPoint(4, scale=0.25).quantize(x) * 4).tolist() == levels
        assert FixedPoint(4, scale=0.25).encode(x).tolist() == [level % 16 for level in levels]

    def test_at_a_tie_the_scale_learns_from_the_even_level(self):
        scale = torch.full((4,), 0.25, requires_grad=True)
        levels = round_to_levels(torch.tensor([-1.5, -0.5, 0.5, 1.5]) / 4, scale, grid_of(4, signed=True))
        levels.sum().backward()
        assert scale.grad.tolist() == [-0.5, 0.5, -0.5, 0.5]  # the level less the number of steps

    def test_one_bit_is_the_sign_or_for_what_has_none_zero_and_one(self):
        assert TensorQuantizer(1)(torch.tensor([-3.0, 1.0])).tolist() == [-2.0, 2.0]
        relu = TensorQuantizer(1)
        assert relu(torch.tensor([0.0, 1.0, 0.9])).tolist()[0] == 0
        assert str(relu.number_format) == "uint1"

    def test_thirty_two_bits_leave_everything_as_it_is(self):
        quantizer = TensorQuantizer(32, scale="learned")
        x = torch.randn(3)
        assert quantizer(x) is x
        assert quantizer.number_format == FP32
        assert not quantizer.initialised

    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("bits", [1, 4])
    def test_nan_passes_and_neither_it_nor_infinity_counts_for_the_scale(self, source, bits):
        quantizer, clean = TensorQuantizer(bits, scale=source), TensorQuantizer(bits, scale=source)
        x = torch.randn(1000)
        dirty = x.clone()
        dirty[:3] = torch.tensor([math.nan, math.inf, -math.inf])
        levels = quantizer(dirty)
        clean(torch.cat([torch.zeros(3), x[3:]]))
        assert levels.isnan().tolist() == [True, *[False] * 999]
        assert torch.equal(quantizer.scale, clean.scale)
        assert levels[1] == levels[1:].max()
        assert levels[2] == levels[1:].min()

    @pytest.mark.parametrize("source", SOURCES)
    def test_an_empty_tensor_passes_and_teaches_nothing(self, source):
        quantizer = TensorQuantizer(4, scale=source)
        empty = torch.zeros(0, 8)
        assert quantizer(empty) is empty
        assert not quantizer.initialised
        quantizer(torch.randn(5, 8))
        before = quantizer.scale.clone()
        quantizer(empty)
        assert torch.equal(quantizer.scale, before)

    @pytest.mark.parametrize("source", SOURCES)
    def test_zeros_teach_nothing_and_stay_zeros(self, source):
        quantizer = TensorQuantizer(4, scale=source)
        assert torch.equal(quantizer(torch.zeros(4)), torch.zeros(4))
        assert not quantizer.initialised
        quantizer(torch.tensor([-1.0, 0.5]))
        assert quantizer.is_signed

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    def test_other_dtypes_are_computed_in_float32_and_answered_in_kind(self, dtype):
        x = torch.randn(100).to(dtype)
        quantizer = TensorQuantizer(4)
        levels = quantizer(x)
        assert levels.dtype == dtype
        assert quantizer.scale.dtype == torch.float32
        wide = x if dtype == torch.float64 else x.float()
        assert torch.equal(levels, quantizer.number_format.quantize(wide).to(dtype))

    def test_autocast(self):
        quantizer = TensorQuantizer(8, scale="learned")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            product = torch.randn(4, 4) @ torch.randn(4, 4)
            levels = quantizer(product)
        assert levels.dtype == torch.bfloat16
        levels.float().sum().backward()
        assert quantizer.scale.grad.dtype == torch.float32

    def test_half_a_model_keeps_its_scales_whole(self):
        quantizer = TensorQuantizer(4, scale="learned")
        quantizer(torch.randn(10))
        scale = quantizer.scale.detach().clone()
        assert torch.equal(quantizer.half().scale, scale)
        assert isinstance(quantizer.scale, torch.nn.Parameter)


class TestScale:
    def test_a_clipped_range_loses_less_than_the_whole_at_few_bits(self):
        x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
        for bits, most in ((2, 0.16), (3, 0.045), (4, 0.0135)):  # a fine grid finds 0.149, 0.0410, 0.0120
            quantizer = TensorQuantizer(bits, scale="dynamic")
            error = float((quantizer(x) - x).square().mean())
            whole = float((FixedPoint(bits).fit(x).quantize(x) - x).square().mean())
            assert error < most
            assert error < whole

    @given(x=tensors.filter(lambda x: bool((x != 0).any())), bits=st.sampled_from([2, 4, 8]))
    @settings(max_examples=60)
    def test_no_step_of_the_grid_loses_less(self, x, bits):
        low, high = FixedPoint(bits).integer_range
        (step,), _ = least_error_scale(x.reshape(1, -1), low, high)

        def loss(s):
            return float((FixedPoint(bits, scale=float(s)).quantize(x).double() - x.double()).square().mean())

        whole = max(float(x.max()) / high, float(x.min()) / low)
        assert all(loss(step) <= loss(max(whole * 2.0**-e, 2.0**-100)) * (1 + 1e-4) + 1e-12 for e in range(9))

    def test_a_far_element_that_the_sample_misses_is_seen(self):
        x = torch.randn(1, 100_000, generator=torch.Generator().manual_seed(0))
        x[0, 77_777] = 100.0
        (step,), _ = least_error_scale(x, -128, 127)
        assert step * 127 > 50

    def test_one_scale_a_channel(self):
        x = torch.randn(3, 4, 5) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
        quantizer = TensorQuantizer(8, scale="dynamic", axis=0, signed=True)
        levels = quantizer(x)
        assert quantizer.scale.shape == (3,)
        for channel in range(3):
            form = FixedPoint(8, scale=float(quantizer.scale[channel]))
            assert torch.equal(levels[channel], form.quantize(x[channel]))
        assert quantizer.number_format == FixedPoint(8, scale=float(quantizer.scale.mean()))
        last = TensorQuantizer(8, scale="dynamic", axis=-1, signed=True)
        torch.testing.assert_close(last(x.movedim(0, -1)), levels.movedim(0, -1))

    def test_a_channel_of_zeros_has_a_scale_of_the_size_of_the_others(self):
        quantizer = TensorQuantizer(8, axis=0)
        quantizer(torch.stack([torch.randn(100), torch.zeros(100), torch.randn(100)]))
        assert quantizer.scale[1] == pytest.approx(float(quantizer.scale[[0, 2]].mean()))

    def test_another_number_of_channels_is_refused(self):
        quantizer = TensorQuantizer(8, axis=1)
        quantizer(torch.randn(2, 3))
        with pytest.raises(ValueError, match=r"x must have 3 channels along axis 1, as before, got shape \(2, 4\)"):
            quantizer(torch.randn(2, 4))

    def test_a_running_estimate_moves_in_train_mode_alone(self):
        quantizer = TensorQuantizer(8, momentum=0.25)
        first, second = torch.linspace(-1, 1, 256), torch.linspace(-3, 3, 256)
        quantizer(first)
        start = float(quantizer.scale)
        quantizer(second)
        assert float(quantizer.scale) == pytest.approx(start + 0.25 * (3 * start - start), rel=1e-5)
        quantizer.eval()
        before = quantizer.scale.clone()
        quantizer(100 * first)
        assert torch.equal(quantizer.scale, before)

    def test_before_anything_was_seen_eval_mode_takes_the_tensor_at_hand_and_forgets_it(self):
        quantizer = TensorQuantizer(8).eval()
        x = torch.randn(50)
        assert torch.equal(quantizer(x), TensorQuantizer(8, scale="dynamic")(x))
        assert not quantizer.initialised

    def test_the_first_tensor_decides_on_the_sign_unless_it_is_given(self):
        quantizer = TensorQuantizer(8)
        quantizer(torch.rand(10))
        assert str(quantizer.number_format) == "uint8"
        assert float(quantizer(-torch.ones(1))) == 0
        given_sign = TensorQuantizer(8, signed=True)
        given_sign(torch.rand(10))
        assert str(given_sign.number_format) == "int8"

    def test_two_passes_in_one_graph_keep_their_own_scales(self):
        quantizer = TensorQuantizer(4)
        x = torch.randn(50, requires_grad=True)
        (quantizer(x).sum() + quantizer(2 * x).sum()).backward()
        assert x.grad.isfinite().all()


class TestLearned:
    @pytest.mark.parametrize(("bits", "signed"), [(4, True), (3, False), (1, True)])
    def test_start_and_gradients_are_those_of_the_paper(self, bits, signed):
        x = torch.randn(64, generator=torch.Generator().manual_seed(1))
        x = x if signed else x.abs()
        x.requires_grad_()
        quantizer = TensorQuantizer(bits, scale="learned")
        levels = quantizer(x)
        low, high = (-1, 1) if bits == 1 else FixedPoint(bits, signed=signed).integer_range
        mean = x.detach().abs().mean()
        start = float(mean if bits == 1 else 2 * mean / high**0.5)
        assert float(quantizer.scale.detach()) == pytest.approx(start)
        upstream = torch.randn(64)
        levels.backward(upstream)
        v = x.detach() / start
        slope = v.round() - v if bits > 1 else torch.where(v >= 0, 1.0, -1.0)
        slope = torch.where(v.round() < low, float(low), torch.where(v.round() > high, float(high), slope))
        expected = float((slope * upstream).sum() / (64 * high) ** 0.5)
        assert float(quantizer.scale.grad) == pytest.approx(expected, rel=1e-4)

    def test_a_scale_a_channel_has_its_own_gradient(self):
        x = torch.randn(2, 100)
        both = TensorQuantizer(4, scale="learned", axis=0)
        both(x)[1].sum().backward()
        alone = TensorQuantizer(4, scale="learned")
        alone(x[1]).sum().backward()
        assert both.scale.grad.tolist() == pytest.approx([0.0, float(alone.scale.grad)])

    def test_the_scale_is_the_same_parameter_from_construction_on(self):
        quantizer = TensorQuantizer(4, scale="learned", axis=0)
        optimizer = torch.optim.Adam(quantizer.parameters(), 1e-2)
        x, before = torch.randn(3, 20), None
        for _ in range(20):
            loss = (quantizer(x) - x).square().mean()
            before = before or loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert (quantizer(x) - x).square().mean().item() < before

    def test_a_scale_below_zero_counts_by_its_magnitude(self):
        quantizer = TensorQuantizer(4, scale="learned")
        x = torch.randn(20)
        levels = quantizer(x)
        with torch.no_grad():
            quantizer.scale.neg_()
        assert torch.equal(quantizer(x), levels)
        assert quantizer.number_format.scale > 0

    def test_second_derivatives_exist(self):
        x = torch.randn(8, requires_grad=True)
        y = TensorQuantizer(8, scale="learned")(x).square().sum()
        (gradient,) = torch.autograd.grad(y, x, create_graph=True)
        (again,) = torch.autograd.grad(gradient.sum(), x)
        torch.testing.assert_close(again, torch.full((8,), 2.0))


class TestState:
    @pytest.mark.parametrize("source", SOURCES)
    @pytest.mark.parametrize("axis", [None, 1])
    def test_state_is_restored_before_the_first_forward(self, source, axis):
        quantizer, other = (TensorQuantizer(4, scale=source, axis=axis) for _ in range(2))
        for _ in range(3):
            quantizer(torch.rand(6, 5))
        other.load_state_dict(quantizer.state_dict())
        assert other.number_format == quantizer.number_format
        x = torch.rand(6, 5)
        assert torch.equal(other(x), quantizer(x))
        state = quantizer.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
        fresh = TensorQuantizer(4, scale=source, axis=axis)
        quantizer.load_state_dict(fresh.state_dict())  # and back to having seen nothing
        x = torch.randn(6, 5)
        assert torch.equal(quantizer(x), fresh(x))

    @pytest.mark.parametrize("source", SOURCES)
    def test_copies_and_files_have_the_same_state_and_their_own(self, source):
        quantizer = TensorQuantizer(4, scale=source, axis=0)
        quantizer(torch.randn(3, 9))
        file = io.BytesIO()
        torch.save(quantizer, file)
        file.seek(0)
        x = torch.randn(3, 9)
        for other in (copy.deepcopy(quantizer), torch.load(file, weights_only=False)):
            expected = copy.deepcopy(quantizer)(x)
            assert torch.equal(other(x), expected)
            assert other.scale.data_ptr() != quantizer.scale.data_ptr()

    def test_what_is_learned_in_inference_mode_can_be_trained_on(self):
        quantizer = TensorQuantizer(4, scale="learned", axis=0)
        with torch.inference_mode():
            quantizer(torch.randn(3, 9))
        quantizer(torch.randn(3, 9)).sum().backward()
        assert quantizer.scale.grad.shape == (3,)

    def test_an_average_of_weights_copies_the_state(self):
        quantizer = TensorQuantizer(4)
        averaged = torch.optim.swa_utils.AveragedModel(quantizer, use_buffers=True)
        quantizer(torch.rand(20))
        averaged.update_parameters(quantizer)
        assert averaged.module.number_format == quantizer.number_format


class TestTrace:
    @pytest.mark.parametrize("bits", [1, 4, 8])
    def test_levels_are_tagged_and_rounding_costs_nothing(self, bits):
        layer, quantizer = torch.nn.Linear(4, 3), TensorQuantizer(bits, signed=True)
        x = torch.randn(5, 4)
        with Tracer(layer, example=x) as tracer:
            layer(quantizer(x))
        (product,) = tracer.trace.operations
        assert product.i_format == quantizer.number_format

    def test_the_gradient_of_rounding_costs_nothing(self):
        def operations(quantise):
            layer = torch.nn.Linear(4, 3)
            x = torch.randn(5, 4, requires_grad=True)
            with Tracer(layer, example=x) as tracer:
                layer(quantise(x)).sum().backward()
            return [o.op for o in tracer.trace.operations]

        assert operations(TensorQuantizer(4)) == operations(lambda x: x)

    @pytest.mark.parametrize("source", SOURCES)
    def test_what_a_scale_learns_from_a_batch_makes_no_constant_depend_on_it(self, source):
        layer, quantizer = torch.nn.Linear(6, 6), TensorQuantizer(8, scale=source, signed=True)
        x, queries = torch.randn(5, 6), torch.nn.Parameter(torch.randn(3, 6))
        macs = []
        for learning in (True, True, False):  # from the first tensor, from a later one, not at all
            quantizer.train(learning)
            with Tracer(layer, example=x) as tracer, torch.no_grad():
                layer(quantizer(x))
                layer(quantizer(queries))  # the same for each inference, and computed beforehand
            macs.append(tracer.trace.macs)
        assert macs == [36, 36, 36]


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "error", "match"),
        [
            ({"bits": 0}, ValueError, "bits must be from 1 to 16, or 32 for no quantisation, got 0"),
            ({"bits": 17}, ValueError, "got 17"),
            ({"bits": 4.0}, TypeError, "bits must be an integer from 1 to 16, or 32, got 4.0"),
            ({"bits": True}, TypeError, "got True"),
            ({"bits": 4, "scale": "max"}, ValueError, "scale must be one of learned, observed, dynamic, got 'max'"),
            ({"bits": 4, "axis": "0"}, TypeError, "axis must be an integer or None, got '0'"),
            ({"bits": 4, "momentum": 0}, ValueError, r"momentum must be in \(0, 1\], got 0"),
        ],
    )
    def test_arguments(self, arguments, error, match):
        with pytest.raises(error, match=match):
            TensorQuantizer(**arguments)

    def test_inputs(self):
        with pytest.raises(TypeError, match=r"x must be a floating-point tensor, got torch.int64"):
            TensorQuantizer(4)(torch.ones(2, dtype=torch.int64))
        with pytest.raises(TypeError, match="got list"):
            TensorQuantizer(4)([1.0])
        with pytest.raises(ValueError, match=r"x must have an axis 2, got shape \(2, 3\)"):
            TensorQuantizer(4, axis=2)(torch.ones(2, 3))


def test_a_format_of_one_bit_is_binary():
    quantizer = TensorQuantizer(1)
    quantizer(torch.tensor([-1.0, 3.0]))
    assert quantizer.number_format == Binary(2.0)


@pytest.mark.parametrize("scale", ["learned", "observed"])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_gradients_of_embeddings_are_the_dense_ones(kind, axis, scale):
    torch.manual_seed(0)
    table, tokens, found = torch.randn(10, 4), torch.tensor([[1, 2], [3, 1]]), []
    for sparse in (False, True):
        options = {"mode": "sum"} if kind is nn.EmbeddingBag else {}
        layer = kind(10, 4, sparse=sparse, _weight=table.clone(), **options)
        quantizer = TensorQuantizer(3, scale=scale, axis=axis, signed=True)
        attach_(layer, {"weight": quantizer})
        with torch.no_grad():
            layer.weight[1] *= 3  # some of it saturates
        layer(tokens).square().sum().backward()
        assert layer.weight.grad.is_sparse == sparse
        found.append([layer.weight.grad.to_dense(), *(p.grad for p in quantizer.parameters())])
    assert found[0][0].any()
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("source", SOURCES)
def test_what_gradient_checkpointing_runs_again_is_rounded_as_before(source, reentrant):
    torch.manual_seed(0)
    layer, quantizer = nn.Linear(8, 8), TensorQuantizer(4, scale=source)
    model = nn.Sequential(quantizer, layer, nn.Tanh())
    plain = copy.deepcopy(model)
    for size in (1.0, 1.0, 3.0):
        x = size * torch.randn(16, 8)
        checkpoint(model, x.requires_grad_(), use_reentrant=reentrant).sum().backward()
        plain(x).sum().backward()
        assert torch.equal(quantizer.scale, plain[0].scale)
        assert torch.equal(layer.weight.grad, plain[1].weight.grad)
