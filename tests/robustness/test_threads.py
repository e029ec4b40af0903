"""One guard, many threads: what is said of a request is of that request."""

import copy
import io
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from lightning_effnn import robustness as rb
from lightning_effnn._remembered import Remembered
from lightning_effnn.robustness.activations import as_deployed


class Meanwhile(nn.Linear):
    """Lets another thread do something before it runs, once."""

    does = None

    def forward(self, x):
        does, Meanwhile.does = Meanwhile.does, None
        if does is not None:
            Meanwhile.found = elsewhere(does)
        return super().forward(x)


def elsewhere(work):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


SPARSE, DENSE = torch.eye(64)[:12], torch.ones(3, 64)


@pytest.fixture
def guarded():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), Meanwhile(16, 16), nn.ReLU(), nn.Linear(16, 2))
    guard = rb.EnergyGuard(model, policy="flag").profile([SPARSE], quantile=1.0)
    guard.most_density.fill_(0.75)
    return guard


def test_requests_that_overlap_get_verdicts_of_their_own(guarded):
    def asks(x):
        guarded(x)
        return guarded.verdict

    alone = asks(SPARSE), asks(DENSE)
    assert not alone[0].refused.any()
    assert alone[1].refused.all()
    for outer, inner in ((0, 1), (1, 0)):
        inputs = (SPARSE, DENSE)
        Meanwhile.does = lambda x=inputs[inner]: asks(x)
        together = asks(inputs[outer])
        for found, expected in ((together, alone[outer]), (Meanwhile.found, alone[inner])):
            assert torch.equal(found.density, expected.density)
            assert torch.equal(found.refused, expected.refused)


def test_a_dense_request_is_refused_in_its_own_thread_alone(guarded):
    guarded.policy = "raise"

    def refused():
        with pytest.raises(rb.SpongeError):
            guarded(DENSE)
        return True

    Meanwhile.does = refused
    assert guarded(SPARSE).shape == (12, 2)
    assert Meanwhile.found


def test_a_thread_that_has_asked_nothing_has_no_verdict(guarded):
    guarded(SPARSE)
    assert elsewhere(lambda: guarded.verdict) is None
    assert guarded.verdict is not None


def test_a_request_that_is_served_while_another_thread_watches_is_not_in_the_profile(guarded):
    limits = []
    for served in (None, lambda: guarded.model(DENSE)):
        Meanwhile.does = served
        guarded.profile([SPARSE], quantile=1.0)
        limits.append((guarded.most_density.item(), guarded.profiled.item()))
    assert limits[0] == limits[1]


def test_a_guard_is_copied_and_saved_without_what_threads_were_told(guarded):
    guarded(SPARSE)
    file = io.BytesIO()
    torch.save(guarded, file)
    file.seek(0)
    for other in (copy.deepcopy(guarded), torch.load(file, weights_only=False)):
        assert other.verdict is None
        assert other(DENSE).shape == (3, 2)
        assert other.verdict.refused.all()
    assert not guarded.verdict.refused.any()


def test_outputs_of_one_thread_are_not_judged_in_another():
    class Writer(nn.Module):
        def generate(self, x, limit):
            return torch.ones(1, int(x), dtype=torch.long)

    guard = rb.GenerationGuard(Writer(), end=9, policy="flag")
    guard.most_steps.fill_(4)
    guard(torch.tensor(8))

    def short():
        guard(torch.tensor(2))
        return guard.verdict

    assert not elsewhere(short).refused.any()
    assert guard.verdict.refused.all()
    assert guard.verdict.length.tolist() == [8]


def test_many_threads_that_collect_at_once_see_all_layers_of_their_own_calls():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    activations, start = rb.Activations(model), threading.Barrier(4)

    def collects(size):
        start.wait()
        for _ in range(100):
            with activations.collecting() as found:
                model(torch.ones(size, 4))
            assert {name: [len(x) for x in xs] for name, xs in found.items()} == {"0": [size], "2": [size]}

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(collects, size) for size in range(1, 5)]:
            done.result()
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_what_is_remembered_of_a_tensor_is_not_handed_out_for_another():
    sums, x, y = Remembered(), torch.ones(3), torch.zeros(3)

    def while_another_asks():
        assert elsewhere(lambda: sums.of(y, lambda: 0.0)) == 0.0
        return 3.0

    assert sums.of(x, while_another_asks) == 3.0
    assert sums.of(x, lambda: 3.0) == 3.0
    assert sums.of(y, lambda: 0.0) == 0.0


def test_modes_are_those_from_before_once_the_last_thread_that_attacks_is_done():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2).eval())
    model[0].bias.requires_grad_(False)
    came, may_go = threading.Event(), threading.Event()

    def attacks():
        with as_deployed(model):
            came.set()
            assert may_go.wait(10)
            return any(m.training for m in model.modules()) or any(p.requires_grad for p in model.parameters())

    with ThreadPoolExecutor(1) as pool:
        with as_deployed(model):
            other = pool.submit(attacks)
            assert came.wait(10)
        may_go.set()
        assert not other.result()  # the first one to leave has changed nothing
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
