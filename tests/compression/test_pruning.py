import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_effnn.compression.pruning import SPLICE, cubic_sparsity, prune_model_, update_masks


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 10))


@given(st.floats(0, 0.99), st.sampled_from(["dns", "magnitude"]), st.sampled_from(["lamp", "global", "layer"]))
@settings(max_examples=30)
def test_the_asked_share_is_cut(sparsity, method, scope):
    model = net()
    report = prune_model_(model, sparsity, method, scope)
    assert report.sparsity == pytest.approx(sparsity, abs=1 / 100)
    if scope == "layer":
        for name in report.elements:
            assert report.layer_sparsity(name) == pytest.approx(sparsity, abs=1 / 200)


def test_what_is_kept_is_larger_than_what_is_cut():
    weight = torch.randn(1000)
    (mask,) = update_masks([weight], [torch.ones(1000, dtype=torch.bool)], 0.7, "magnitude")
    assert weight[mask].abs().min() > weight[~mask].abs().max()


def test_biases_and_norms_are_left_alone():
    model = net()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    prune_model_(model, 0.9)
    for name, value in model.state_dict().items():
        if value.ndim < 2:
            assert torch.equal(value, before[name])


def test_surgery_keeps_a_cut_weight_cut_until_it_is_clearly_larger():
    weight = torch.tensor([1.0, 2.0, 3.0, 3.2, 4.0, 9.0])
    cut = torch.tensor([True, True, True, False, False, True])
    (mask,) = update_masks([weight], [cut], 0.5, "dns", "layer")
    # threshold 3: 3.2 is above it but below the splicing one, 4.0 above both
    assert 3.2 < 3.0 * SPLICE < 4.0
    assert mask.tolist() == [False, False, False, False, True, True]
    assert update_masks([weight], [cut], 0.5, "magnitude", "layer")[0].tolist() == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]


def test_lamp_scores_are_shares_of_the_squares_that_are_no_smaller():
    # by hand; the largest of each layer scores 1
    first, second = torch.tensor([3.0, -1.0, 4.0, 2.0]), torch.tensor([0.5, 5.0])
    scores = {3.0: 9 / 25, -1.0: 1 / 30, 4.0: 1.0, 2.0: 4 / 29, 0.5: 0.25 / 25.25, 5.0: 1.0}
    for cut in range(5):
        lost = sorted(scores, key=lambda value: scores[value])[:cut]
        masks = update_masks(
            [first, second], [torch.ones(4, dtype=torch.bool), torch.ones(2, dtype=torch.bool)], cut / 6, "magnitude",
            "lamp",
        )  # fmt: skip
        kept = torch.cat([first, second])[torch.cat(masks)].tolist()
        assert sorted(kept) == sorted(set(scores) - set(lost))


def test_lamp_ignores_the_scale_of_a_layer_and_leaves_small_layers_denser():
    large, small = torch.randn(20000), torch.randn(200)
    kept = []
    for scale in (1.0, 0.01):
        masks = update_masks(
            [large, small * scale], [torch.ones(n, dtype=torch.bool) for n in (20000, 200)], 0.99, "dns", "lamp"
        )
        kept.append([int(mask.sum()) for mask in masks])
    assert kept[0] == kept[1]
    assert kept[0][1] / 200 > 3 * kept[0][0] / 20000


def test_a_global_threshold_cuts_layers_of_small_weights_more():
    small, large = torch.randn(1000) * 0.1, torch.randn(1000)
    masks = update_masks([small, large], [torch.ones(1000, dtype=torch.bool)] * 2, 0.5)
    assert masks[0].float().mean() < 0.2 < 0.8 < masks[1].float().mean()


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_a_sparsity_outside_the_range_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity="):
        prune_model_(net(), sparsity)


@pytest.mark.parametrize(("key", "value"), [("method", "random"), ("scope", "channel")])
def test_an_unknown_choice_is_named(key, value):
    with pytest.raises(ValueError, match=f"{key}='{value}'"):
        prune_model_(net(), 0.5, **{key: value})


def test_a_model_without_weights_is_refused():
    with pytest.raises(ValueError, match="no weight to prune or quantise"):
        prune_model_(nn.BatchNorm2d(3), 0.5)


def test_a_weight_with_nan_is_named():
    model = net()
    with torch.no_grad():
        model[3].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"3\.weight"):
        prune_model_(model, 0.5)


def test_the_cubic_schedule_rises_from_zero_to_the_end():
    values = [cubic_sparsity(0.9, p / 10) for p in range(11)]
    assert values[0] == 0
    assert values[-1] == 0.9
    assert values == sorted(values)
    assert cubic_sparsity(0.9, 2.0) == 0.9


@pytest.mark.parametrize("scope", ["lamp", "global", "layer"])
def test_of_many_weights_samples_give_the_asked_share(scope):
    torch.manual_seed(0)
    weights = [torch.randn(1500, 1000), torch.randn(900, 1001) * 3.0, torch.randn(64, 3, 3, 3)]
    assert sum(weight.numel() for weight in weights) > 2**21
    for sparsity in (0.3, 0.9):
        masks = update_masks(weights, [torch.ones_like(w, dtype=torch.bool) for w in weights], sparsity, "dns", scope)
        kept = [int(mask.sum()) for mask in masks]
        assert 1 - sum(kept) / sum(weight.numel() for weight in weights) == pytest.approx(sparsity, abs=1e-3)
        if scope == "layer":
            assert kept[1] / weights[1].numel() == pytest.approx(1 - sparsity, abs=1e-3)


@pytest.mark.parametrize("size", [3000, 3_000_000])
def test_a_layer_of_small_weights_keeps_a_third_of_the_average_density(size):
    torch.manual_seed(0)
    small, large = torch.randn(size // 3) * 0.01, torch.randn(2 * size // 3)
    masks = update_masks([small, large], [torch.ones_like(w, dtype=torch.bool) for w in (small, large)], 0.7)
    assert masks[0].float().mean() == pytest.approx(0.1, abs=0.005)
    assert 1 - torch.cat(masks).float().mean() == pytest.approx(0.7, abs=1e-3)
