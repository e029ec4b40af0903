"""A trace describes one inference: its figures are those worked out by hand, whatever batch was traced."""

from functools import cache

import pytest
import torch
from families_attention import FAMILIES as ATTENTION
from families_convolution import FAMILIES as CONVOLUTION
from families_lookups import FAMILIES as LOOKUPS
from families_other import FAMILIES as OTHER
from families_positions import FAMILIES as POSITIONS
from family import BATCHES

from lightning_effnn import hardware
from lightning_effnn.hardware.trace import Trace

FAMILIES = [*ATTENTION, *CONVOLUTION, *LOOKUPS, *OTHER, *POSITIONS]


def each(families):
    return pytest.mark.parametrize("family", families, ids=lambda family: family.name)


def trace_of(family, n, **told):
    torch.manual_seed(0)
    return hardware.trace(family.build(n), *family.batch(n), **told)


@cache
def traced(family, n):
    return trace_of(family, n, **family.told(n))


@cache  # equal traces are priced once
def figures(operations, parameters):
    trace = Trace(operations, parameters=parameters)
    tpu, eyeriss = hardware.estimate(trace, "tpu_like"), hardware.estimate(trace, "eyeriss_like")
    return {
        "energy_uJ on tpu_like": tpu.energy_uJ,
        "energy_uJ on eyeriss_like": eyeriss.energy_uJ,
        "dram_kB": tpu.dram_kB,
        "weights_kB": tpu.weights_kB,
    }


def refusal(family, n):
    """In which words a batch of which nothing is told is refused; empty where it is counted right."""
    try:
        return "" if trace_of(family, n).macs == family.macs else "counted wrong"
    except ValueError as error:
        return str(error)


@each(FAMILIES)
def test_the_products_are_those_counted_by_hand(family):
    assert {n: traced(family, n).macs for n in BATCHES} == dict.fromkeys(BATCHES, family.macs)


@each(FAMILIES)
def test_cost_does_not_depend_on_the_batch_that_was_traced(family):
    traces = {n: traced(family, n) for n in BATCHES}
    costs = {n: figures(trace.operations, trace.parameters) for n, trace in traces.items()}
    assert costs == {n: pytest.approx(costs[1], rel=1e-3) for n in BATCHES}


@each(FAMILIES)
def test_every_operation_is_known(family):
    assert traced(family, 3).unknown == {}


@each(FAMILIES)
def test_a_deployment_batch_does_not_depend_on_the_batch_that_was_traced_either(family):
    found = {n: trace_of(family, n, batch_size=4, **family.told(n)).macs for n in (1, 3)}
    pairs = 4 if family.name.startswith("similarities") else 1  # of all images with all texts
    assert found[1] == found[3] <= 4 * pairs * family.macs


@each([family for family in FAMILIES if family.told(1)])
def test_a_batch_of_which_nothing_is_told_is_counted_right_or_refused_with_what_to_tell(family):
    answers = {n: refusal(family, n) for n in BATCHES}
    assert all(not text or "batch_dim" in text or "inferences" in text for text in answers.values()), answers
