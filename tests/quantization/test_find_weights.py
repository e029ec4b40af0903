"""Weights that no class tells: seen in a run, or declared."""

import pytest
import torch
from helpers import TOKENS, Conv1D, Language, Projection, Standardised, found, weight_sites_after
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from lightning_effnn.compression import focus_model_, prune_model_, save_compressed
from lightning_effnn.quantization import (
    Selection,
    TensorQuantizer,
    activation_sites,
    attach_,
    coverage,
    find_weights_,
    quantize_,
    weight_sites,
)


@pytest.mark.parametrize("linear", [Conv1D, Projection])
def test_a_gpt_of_whatever_class_is_taken_whole(linear):
    model = Language(linear)
    selection = find_weights_(model, TOKENS)
    assert selection.share_of_macs == 1.0
    assert selection.share_of_parameters > 0.95
    axes = {site.name: site.axis for site in selection.sites}
    assert axes["blocks.0.c_attn.weight"] == axes["blocks.1.c_out.weight"] == 1
    assert next(site.names for site in selection.sites) == ("wte.weight", "head.weight")
    assert sum("weight" in name for name in axes) == 2 + 8


def test_a_gpt_pruned_and_focused_is_a_small_file(tmp_path):
    torch.manual_seed(0)
    model = Language(Projection, width=64)
    find_weights_(model, TOKENS)
    assert prune_model_(model, 0.9).sparsity == pytest.approx(0.9, abs=0.001)
    focus_model_(model, bits=5)
    report = save_compressed(model, tmp_path / "gpt.effnn")
    assert report.ratio > 30
    assert report.elements == sum(p.numel() for p in model.parameters())


def test_conv1d_of_transformers_is_known_by_its_name_and_others_are_warned_of():
    assert {site.axis for site in weight_sites(Language()) if "c_" in site.name} == {1}
    model = Language(Projection)
    assert [site.name for site in weight_sites(model)] == ["wte.weight", "wpe.weight"]
    assert not Selection(model).is_enough
    with pytest.warns(UserWarning, match=r"(?s)takes 2 weights.*classes that are not known .*: blocks\.\*;"):
        quantize_(model, "W8A8")


class Experts(nn.Module):
    """Experts in one tensor, by bmm or einsum, each token sent to one of them."""

    def __init__(self, product):
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.up, self.down = nn.Parameter(torch.randn(4, 8, 16)), nn.Parameter(torch.randn(4, 16, 8))
        self.product = product

    def forward(self, x):
        gates = self.router(x).softmax(-1)  # [tokens, experts]
        hidden = self.product(x.expand(4, *x.shape), self.up).relu()
        return (self.product(hidden, self.down) * gates.T[..., None]).sum(0)


def by_einsum(x, weight):
    return torch.einsum("enc,eck->enk", x, weight)


def by_matmul_turned(x, weight):
    return (weight.transpose(1, 2) @ x.transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("product", [torch.bmm, by_einsum, by_matmul_turned])
def test_experts_in_three_axes(product):
    assert found(Experts(product), torch.randn(6, 8)) == {"up": 2, "down": 2, "router.weight": 0}


def test_experts_that_are_picked_by_index():
    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(4, 8, 16))

        def forward(self, x):
            return (x[:, None] @ self.up[x[:, 0].long() % 4])[:, 0]

    assert found(Picked(), torch.randn(6, 8)) == {"up": 2}


def test_experts_of_a_list_are_quantised_where_they_are_read():
    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ParameterList(torch.randn(8, 8) for _ in range(3))

        def forward(self, x):
            return sum(x @ w for w in self.experts)

    model, x = Listed(), torch.randn(2, 8)
    assert found(model, x) == {"experts.0": 1, "experts.1": 1, "experts.2": 1}
    attach_(model, {f"experts.{n}": TensorQuantizer(8, signed=True) for n in range(3)})
    assert [o.weight_format for o in coverage(model, x).operations] == ["int8"] * 3


def test_projections_in_three_axes():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.out = nn.Parameter(torch.randn(12, 4, 5)), nn.Parameter(torch.randn(4, 5, 12))

        def forward(self, x):
            q = torch.einsum("bsd,dhk->bshk", x, self.query)
            return torch.einsum("bshk,hkd->bsd", q, self.out)

    selection = find_weights_(Heads(), torch.randn(2, 3, 12))
    assert {site.name: site.axis for site in selection.sites} == {"query": 2, "out": 2}
    assert selection.share_of_macs == selection.share_of_parameters == 1.0


def test_scales_a_channel_follow_the_axis_that_was_seen():
    model, x = Projection(6, 8), torch.randn(4, 8)
    find_weights_(model, x)
    attachment = quantize_(nn.Sequential(model), "W8A8", per_channel=True)
    assert attachment.weights["0.weight"].scale.shape == (6,)


class Lora(nn.Module):
    """A frozen base with adapters; merged before the product, or beside it."""

    def __init__(self, merged=False):
        super().__init__()
        self.base, self.merged = nn.Linear(16, 16).requires_grad_(False), merged
        self.a, self.b = nn.Parameter(torch.randn(2, 16)), nn.Parameter(torch.randn(16, 2))

    def forward(self, x):
        if self.merged:
            return F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)
        return self.base(x) + x @ self.a.T @ self.b.T


def test_the_base_of_lora_is_left_and_named():
    model = Lora()
    assert found(model, torch.randn(3, 16)) == {"a": 0, "b": 0}
    selection = Selection(model)
    (frozen,) = [group for group in selection.left if "frozen" in group.reason]
    assert frozen.names == ("base.weight",)
    assert selection.share_of_macs == pytest.approx(64 / 320)
    assert not selection.is_enough
    assert "base.weight" in str(selection)
    assert Selection(model, exclude=["base.*"]).is_enough  # the user knows
    assert [site.name for site in weight_sites(model, include=["base"])] == ["base.weight"]


def test_a_matrix_that_is_added_to_another_is_no_weight_of_the_product():
    model = Lora(merged=True).requires_grad_(True)
    with pytest.raises(ValueError, match="no weight to prune or quantise"):
        weight_sites_after(model, torch.randn(3, 16))
    reasons = {name: group.reason for group in Selection(model).left for name in group.names}
    assert "add" in reasons["base.weight"]
    assert "no product" in reasons["a"]


def test_frozen_networks_are_left_where_others_train():
    model = nn.ModuleDict(
        {
            "net": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
            "teacher": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)),
        }
    )
    model["teacher"].requires_grad_(False)
    assert [site.name for site in weight_sites(model)] == ["net.0.weight", "net.1.weight"]
    assert [site.name for site in activation_sites(model)] == ["net.0", "net.1"]
    assert len(weight_sites(model, frozen=True)) == len(activation_sites(model, frozen=True)) == 4
    assert [site.name for site in weight_sites(model, include=["teacher.*"])] == [
        "teacher.0.weight",
        "teacher.1.weight",
    ]
    assert [site.name for site in activation_sites(model, include=["teacher.1"])] == ["teacher.1"]
    assert [site.name for site in weight_sites(model, include=["Linear"])] == ["net.0.weight", "net.1.weight"]
    assert "teacher.*" in str(Selection(model))
    attach_(model, {"teacher.0.weight": TensorQuantizer(8)})  # who names it may
    assert len(weight_sites(model.requires_grad_(False))) == 4  # ready to be deployed


def test_a_model_whose_weights_are_all_frozen_says_so():
    model = nn.Linear(4, 4)
    model.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="weight would be one, but is frozen: name it in include"):
        weight_sites(model)


def test_coverage_says_how_a_factor_is_computed():
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 8)), nn.Unflatten(1, (2, 2, 2)), Standardised(2, 2, 1), nn.Flatten()
    )
    x = torch.randn(3, 8)
    quantize_(model, "W8A8")
    assert [o.reason for o in coverage(model, x).operations] == [
        "0.parametrizations.weight.original1 is scaled before the product",
        "2.weight goes through sub before the product",
    ]
