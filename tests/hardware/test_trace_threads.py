"""Traces in one thread beside whatever runs in others: each is right, and nobody notices the other."""

import threading

import torch
from torch import nn

from lightning_effnn import hardware


def network(width):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(width * 64, 4), nn.Softmax(-1)
    ).eval()


def together(*works):
    """Run each in a thread of its own; what any of them raised."""
    errors = []

    def guarded(work):
        try:
            work()
        except Exception as error:
            errors.append(repr(error))

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def figures(model, x):
    result = hardware.trace(model, x)
    return [(o.name, o.op, o.macs, o.elements_in, o.o_density) for o in result.operations]


def test_two_threads_trace_and_a_third_serves():
    models, x = [network(4), network(6)], torch.rand(1, 1, 8, 8)
    right, answer = [figures(model, x) for model in models], network(5)
    with torch.no_grad():
        served = answer(x)
    wrong = []

    def traces(which):
        for _ in range(60):
            if figures(models[which], x) != right[which]:
                wrong.append(which)

    def serves():
        for _ in range(300):
            with torch.no_grad():
                if not torch.equal(answer(x), served):
                    wrong.append("served")

    assert together(lambda: traces(0), lambda: traces(1), serves) == []
    assert wrong == []


def test_what_is_switched_off_while_any_thread_traces_comes_back_with_the_last():
    layer, x = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval(), torch.rand(2, 3, 8)
    right = hardware.trace(layer, x).macs
    wrong = []

    def traces():
        for _ in range(25):
            if hardware.trace(layer, x).macs != right:
                wrong.append(1)

    assert together(traces, traces) == []
    assert wrong == []
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_block_that_is_open_in_one_thread_does_not_see_another_threads_work():
    model, x = nn.Linear(4, 4), torch.rand(2, 4)
    with hardware.Tracer(model, example=x) as tracer:
        assert together(lambda: model(x), lambda: nn.Linear(4, 4)(x)) == []
        model(x)
    assert tracer.trace.macs == 16
