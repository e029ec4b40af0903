import pytest
import torch
from torch import nn

from lightning_effnn.compression import Projector, Stages
from lightning_effnn.compression.stages import FRACTIONS, PRUNING_STEPS, STAGES


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))


def weights(model):
    return torch.cat([model[0].weight.detach().flatten(), model[2].weight.detach().flatten()])


def test_a_network_goes_from_dense_to_final():
    model = network()
    projector, stages = Projector(model), Stages(sparsity=0.5)
    seen = []
    for done in (-0.2, 0.1, 0.6, 1.0):
        stages.prune(projector, done)
        seen.append(STAGES[stages.stage])
    for done in (-0.2, 0.0, 0.5, 1.0):
        stages.quantize(projector, done)
        seen.append(STAGES[stages.stage])
    assert seen == ["dense"] + 4 * ["pruning"] + 2 * ["quantising"] + ["final"]
    assert projector.sparsity == pytest.approx(0.5, abs=0.01)
    assert len(model[0].weight.unique()) <= 19


def test_what_is_over_is_not_done_again():
    model = network()
    projector, stages = Projector(model), Stages(sparsity=0.5)
    stages.prune(projector, 1.7)
    stages.quantize(projector, 3.0)
    assert (stages.pruned, stages.rounded) == (PRUNING_STEPS, len(FRACTIONS) - 1)
    before = weights(model)
    stages.prune(projector, 1.9)
    stages.quantize(projector, 0.2)
    assert torch.equal(weights(model), before)
    assert not stages.complete(projector)


@pytest.mark.parametrize(
    ("stages", "cut", "levels"),
    [(Stages(0.0), 0.0, 19), (Stages(0.5, quantizes=False), 0.5, 10_000)],
    ids=["quantised alone", "pruned alone"],
)
def test_what_is_left_out_is_never_done(stages, cut, levels):
    model = network()
    projector = Projector(model)
    stages.complete(projector)
    assert stages.stage == 3
    kept = torch.cat([layer.mask.flatten() for layer in projector.layers])
    assert float((~kept.bool()).float().mean()) == pytest.approx(cut, abs=0.01)
    assert len(model[0].weight.unique()) <= levels


def test_weights_that_are_not_finite_are_left_for_the_training_to_raise():
    model = network()
    projector, stages = Projector(model), Stages(sparsity=0.5)
    projector.restore()
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
    projector.capture()
    stages.prune(projector, 1.0)
    assert stages.pruned == -1


def test_a_sparsity_out_of_range_is_refused():
    with pytest.raises(ValueError, match="sparsity"):
        Stages(1.0)
