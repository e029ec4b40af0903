"""Callbacks together in one Trainer: their order in the list does not matter, or is refused with a reason."""

import itertools

import pytest
import torch
from callback_cases import CASES, Run, equal_states, loader, network, trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor, LowPrecisionSearch, SpongeTraining
from lightning_effnn.compression import load_compressed
from lightning_effnn.quantization import QuantizationPlan

PAIRS = list(itertools.combinations(CASES, 2))
SHARED = {frozenset({"FocusedCompression", "LowPrecisionSearch"}): "would both round weights/a.0.weight"}


def together(callbacks, **kw):
    """Fit with these; return trainer, model and what the model says of some images."""
    model, its = network(), trainer(callbacks, **kw)
    torch.manual_seed(2)
    its.fit(model, loader(), loader(2))
    return its, model, model.eval()(next(iter(loader()))[0])


def assert_the_same(one, other):
    (its, model, said), (its_too, model_too, said_too) = one, other
    assert equal_states(model, model_too)
    assert torch.equal(said, said_too)
    assert dict(its.callback_metrics) == dict(its_too.callback_metrics)


@pytest.mark.parametrize(("a", "b"), PAIRS, ids=[f"{a.name}-{b.name}" for a, b in PAIRS])
def test_two_callbacks_end_alike_in_either_order(a, b, tmp_path):
    ends = []
    for order in ((a, b), (b, a)):
        callbacks = [case.make(tmp_path) for case in order]
        if words := SHARED.get(frozenset({a.name, b.name})):
            with pytest.raises(MisconfigurationException, match=words):
                together(callbacks)
            continue
        ends.append(together(callbacks))
        for case, callback in zip(order, callbacks, strict=True):
            case.promise(Run(*ends[-1][:2], callback, tmp_path))
    if ends:
        assert_the_same(*ends)


def the_four(folder):
    """Weights are one callback's, activations another's."""
    return {
        "compression": FocusedCompression(
            sparsity=0.6, prune=(0.0, 0.4), quantize=(0.4, 0.7), export=folder / "model.effnn"
        ),
        "sponge": SpongeTraining(steps=1),
        "search": LowPrecisionSearch((), (4, 8), "bits", warmup=0.0, freeze=0.6, export=folder / "bits.yaml"),
        "monitor": HardwareEnergyMonitor("tpu_like"),
    }


ORDERS = list(itertools.permutations(["compression", "sponge", "search", "monitor"]))


@pytest.mark.parametrize(
    "order",
    [pytest.param(order, marks=[] if i in (9, 23) else [pytest.mark.slow]) for i, order in enumerate(ORDERS) if i],
    ids="-".join,
)
@pytest.mark.parametrize("settings", [{}, {"max_steps": 9}], ids=["whole", "stopped early"])
def test_four_callbacks_end_alike_in_any_order(order, settings, tmp_path):
    first, second = the_four(tmp_path), the_four(tmp_path)
    expected = together([first[name] for name in ORDERS[0]], **settings)
    file = (tmp_path / "model.effnn").read_bytes()
    assert_the_same(expected, together([second[name] for name in order], **settings))
    assert (tmp_path / "model.effnn").read_bytes() == file


def test_four_callbacks_keep_what_each_promises(tmp_path):
    four = the_four(tmp_path)
    its, model, said = together(list(four.values()))
    again = load_compressed(tmp_path / "model.effnn", network()).eval()
    assert torch.equal(again(next(iter(loader()))[0]), said)  # sparse powers of two, activations of chosen bits
    rows = [row for row in four["monitor"].report.rows() if row["macs"]]
    assert {row["w_format"] for row in rows} <= {"focus5", "pow2_5"}
    bits = QuantizationPlan.load(tmp_path / "bits.yaml").activations
    assert set(bits.values()) <= {4, 8}
    assert all(int(row["i_format"].lstrip("uint")) in set(bits.values()) for row in rows)
    assert four["compression"].projector.sparsity >= 0.5
    assert 0 < float(its.callback_metrics["sponge/penalty"]) < 1
    assert "training_step" not in model.__dict__


def test_two_compressions_share_a_network_but_no_weight(tmp_path):
    def halves():
        first = FocusedCompression(0.5, include=["a.*"], prune=(0.0, 0.4), quantize=(0.4, 0.7))
        second = FocusedCompression(0.8, bits=4, include=["b.*"], prune=(0.0, 0.4), quantize=(0.4, 0.7), prefix="other")
        return first, second

    first, second = halves()
    assert_the_same(together([first, second]), together(list(reversed(halves()))))
    assert first.projector.sparsity < 0.6 < second.projector.sparsity
    with pytest.raises(MisconfigurationException, match="weights/a.0.weight"):
        together([FocusedCompression(0.5), FocusedCompression(0.5, prefix="other")])


def test_activations_are_rounded_by_one_callback():
    with pytest.raises(MisconfigurationException, match=r"activations/a.0.*activations=\(\)"):
        together([FocusedCompression(activations=8), LowPrecisionSearch((), (4, 8), "bits")])


def test_pruning_goes_with_a_search_for_the_bits_of_weights():
    compression = FocusedCompression(0.6, prune=(0.0, 0.4), quantize=None)
    search = LowPrecisionSearch((2, 8), (), "bits", warmup=0.0, freeze=0.6)
    _, model, _ = together([search, compression])
    for name in search.plan.weights:
        assert float((model.get_parameter(name) == 0).float().mean()) > 0.1
    assert compression.projector.sparsity >= 0.5
