"""One quantised model in several threads: each computes as if it were alone, and the parameters stay in place."""

import copy
import io
import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from helpers import Tied
from torch import nn

from lightning_effnn.quantization import (
    QuantizationPlan,
    TensorQuantizer,
    attach_,
    coverage,
    exact_activations,
    quantize_,
    strip_,
)
from lightning_effnn.quantization.hooks import hosts_of

ROUNDS = 40


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.GRU(5, 4, num_layers=2)

    def forward(self, x):
        return self.layers(x)[0]


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


MODELS = {
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 3)),
        lambda: torch.rand(2, 1, 8, 8),
    ),
    "recurrent": (Recurrent, lambda: torch.randn(6, 2, 5)),
    "attention": (Mixing, lambda: torch.randn(2, 5, 8)),
    "tied": (Tied, lambda: torch.arange(9).reshape(3, 3)),
}


@pytest.fixture(autouse=True)
def threads_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=MODELS)
def served(request):
    torch.manual_seed(0)
    build, example = MODELS[request.param]
    model, x = build(), example()
    quantize_(model, QuantizationPlan.uniform(model, 3, 4))
    model(x)
    return model.eval(), x


def at_once(*works):
    """Run these, each again and again, at the same time; what one raises is raised."""
    start = threading.Barrier(len(works))

    def again(work):
        start.wait()
        for _ in range(ROUNDS):
            work()

    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(again, work) for work in works]:
            done.result()


def evaluates(model, x, expected):
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_threads_that_serve_one_model_get_what_one_alone_gets_and_leave_the_parameters(served):
    model, x = served
    parameters = dict(model.named_parameters())
    kept = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(x)
    at_once(*[partial(evaluates, model, x, expected)] * 2)
    assert all(after is parameters[name] for name, after in model.named_parameters())
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_one_thread_takes_gradients_while_another_evaluates(served):
    model, x = served
    with torch.no_grad():
        expected = model(x)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(model(x).square().sum(), parameters, allow_unused=True)

    def differentiates():
        found = torch.autograd.grad(model(x).square().sum(), parameters, allow_unused=True)
        torch.testing.assert_close(found, gradients, rtol=1e-4, atol=1e-5)

    at_once(differentiates, partial(evaluates, model, x, expected))


def test_who_saves_or_copies_while_another_thread_runs_the_model_gets_the_parameters(served):
    model, x = served
    kept = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(x)

    def saves():
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())

    def copies():
        other = copy.deepcopy(model)
        assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())
        evaluates(other, x, expected)

    at_once(saves, copies, partial(evaluates, model, x, expected))


def test_who_copies_while_another_thread_takes_gradients_gets_the_parameters(served):
    model, x = served
    kept = copy.deepcopy(model.state_dict())
    expected = model(x).detach()

    def copies():
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())
            other(x).sum().backward()
            evaluates(other, x, expected)

    at_once(copies, lambda: torch.autograd.grad(model(x).sum(), list(model.parameters()), allow_unused=True))


def test_a_copy_of_a_recurrent_layer_within_a_call_computes_with_its_own_parameters():
    layer, copies = nn.GRU(5, 6), []
    quantize_(layer, "W4A8")
    layer.register_forward_pre_hook(lambda *_: copies.append(copy.deepcopy(layer)))
    x = torch.randn(6, 2, 5)
    layer(x)
    (other,) = copies
    assert all(a is b for a, b in zip(other._flat_weights, other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), layer.parameters(), strict=True))


def test_a_compiled_model_runs_beside_the_eager_one(served):
    model, x = served
    if isinstance(model, Recurrent):
        pytest.skip("torch.compile runs recurrent layers eagerly")
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)  # in levels too
    parameters = dict(model.named_parameters())
    at_once(partial(evaluates, compiled, x, expected), partial(evaluates, model, x, expected))
    assert all(after is parameters[name] for name, after in model.named_parameters())


class Meanwhile(nn.Linear):
    """Lets another thread do something in the middle of its forward."""

    does = None

    def forward(self, x):
        if Meanwhile.does is not None:
            does, Meanwhile.does = Meanwhile.does, None
            with ThreadPoolExecutor(1) as pool:
                Meanwhile.found = pool.submit(does).result()
        return super().forward(x)


def pickled(layer):
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "look",
    [
        lambda layer: layer.weight,
        lambda layer: next(layer.parameters()),
        lambda layer: layer.state_dict()["weight"],
        lambda layer: copy.deepcopy(layer).weight,
        lambda layer: pickled(layer).weight,
    ],
    ids=["attribute", "parameters", "state", "copy", "pickle"],
)
def test_another_thread_sees_the_parameter_in_the_middle_of_a_call(look):
    layer, x = Meanwhile(4, 4), torch.randn(2, 4)
    attach_(layer, {"weight": TensorQuantizer(2, scale="dynamic", signed=True)})
    Meanwhile.does = partial(look, layer)
    layer(x)
    assert torch.equal(Meanwhile.found, layer.weight)


def test_a_call_within_that_of_another_thread_computes_with_levels_and_so_does_the_other_after_it():
    layer, x = Meanwhile(4, 4), torch.randn(2, 4)
    attach_(layer, {"weight": TensorQuantizer(2, scale="dynamic", signed=True)})
    expected = layer(x)
    Meanwhile.does = partial(layer, x)
    assert torch.equal(layer(x), expected)
    assert torch.equal(Meanwhile.found, expected)
    assert isinstance(layer.weight, nn.Parameter)


def test_what_one_thread_asks_of_the_quantisers_does_not_hold_in_another():
    layer, x = nn.Linear(4, 4).eval(), torch.rand(3, 4)
    attachment = attach_(layer, activations={"": TensorQuantizer(2, signed=True)})
    with attachment.calibrating():
        layer(x)
    scale, expected = attachment.activations[""].scale.clone(), layer(x)

    def in_another_thread(work):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(work).result()

    with exact_activations(layer):
        assert torch.equal(in_another_thread(partial(layer, x)), expected)
        assert not torch.equal(layer(x), expected)
    with attachment.calibrating():
        in_another_thread(partial(layer, 9 * x))
        assert torch.equal(attachment.activations[""].scale, scale)
        layer(9 * x)
    assert not torch.equal(attachment.activations[""].scale, scale)


def test_a_recurrent_layer_whose_call_was_interrupted_runs_in_other_threads_again():
    class Interrupted(nn.GRU):
        stop = False

        def forward(self, x):
            if self.stop:
                raise KeyboardInterrupt
            return super().forward(x)

    layer, x = Interrupted(3, 2), torch.randn(4, 3)
    attach_(layer, {"weight_ih_l0": TensorQuantizer(2, scale="dynamic", signed=True)})
    expected = layer(x)[0]
    layer.stop = True
    with pytest.raises(KeyboardInterrupt):
        layer(x)
    layer.stop = False
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(layer, x).result(timeout=60)[0], expected)
    assert torch.equal(layer(x)[0], expected)
    strip_(layer)
    assert all(flat is parameter for flat, parameter in zip(layer._flat_weights, layer.parameters(), strict=True))


def test_replicas_of_data_parallel_are_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    attach_(model, {"0.weight": TensorQuantizer(4)})
    replica = model[0]._replicate_for_data_parallel()
    with pytest.raises(RuntimeError, match=r"0 has quantisers.*use DistributedDataParallel, or bake_"):
        replica(torch.ones(1, 2))


def test_coverage_is_that_of_the_thread_that_asks():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.rand(3, 4)
    quantize_(model, "W8A8")
    other = nn.Sequential(*[nn.Linear(4, 4) for _ in range(3)])
    expected = coverage(model, x)

    def asks():
        assert coverage(model, x) == expected

    at_once(asks, partial(other, x))


def test_a_copy_waits_for_nobody_who_runs_the_original():
    model = nn.Sequential(nn.Linear(3, 2))
    quantize_(model, QuantizationPlan.uniform(model, 4, 4))
    locks = [{id(swap.lock) for _, host in hosts_of(m) for swap in host.swaps} for m in (model, copy.deepcopy(model))]
    assert len(locks[0]) == len(locks[1]) == 1
    assert not locks[0] & locks[1]
