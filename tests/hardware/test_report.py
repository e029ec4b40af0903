import csv
import math

import pytest
import torch
from torch import nn

from lightning_effnn import hardware
from lightning_effnn.hardware.accelerator import PRESETS


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@pytest.fixture(scope="module")
def report(model):
    return hardware.estimate(hardware.trace(model, torch.rand(2, 3, 16, 16)), "eyeriss_like")


def test_totals_are_the_sums_of_rows_modules_and_levels(report):
    assert sum(r["energy_pJ"] for r in report.rows()) / 1e6 == pytest.approx(report.energy_uJ)
    assert sum(r["energy_uJ"] for r in report.by_module(1)) == pytest.approx(report.energy_uJ)
    assert sum(r["energy_uJ"] for r in report.by_module(3)) == pytest.approx(report.energy_uJ)
    assert sum(report.by_level().values()) == pytest.approx(report.energy_uJ)
    assert sum(r["latency_us"] for r in report.by_module()) == pytest.approx(report.latency_us)
    assert sum(r["dram_kB"] for r in report.rows()) == pytest.approx(report.dram_kB)


def test_modules_have_the_models_names(report, model):
    names = {name for name, _ in model.named_modules()}
    assert {r["name"] for r in report.rows()} <= names
    assert [r["module"] for r in report.by_module(1)] == ["0", "1", "2", "4"]


def test_macs_weights_and_densities_are_those_of_the_network(report, model):
    assert report.macs == 16 * 16 * (3 * 8 * 9 + 8 * 8 * 9) + 8 * 4
    parameters = sum(p.numel() for p in model.parameters())
    # zeros (fresh biases) are stored as runs
    assert 0.95 * parameters * 32 / 8000 <= report.weights_kB <= (parameters + 3 * 8) * 32 / 8000
    assert 0 < report.act_density <= 1
    assert report.effectual_macs <= report.macs
    assert report.energy_uJ <= report.energy_dense_uJ


def test_a_sparse_network_is_cheaper_on_a_chip_that_saves_on_zeros(model):
    x = torch.rand(1, 3, 16, 16)
    dense = hardware.estimate(hardware.trace(model, x), "eyeriss_like")
    import copy

    sparse = copy.deepcopy(model)
    with torch.no_grad():
        for p in sparse.parameters():
            if p.ndim > 1:
                p *= torch.rand_like(p) < 0.2
    pruned = hardware.estimate(hardware.trace(sparse, x), "eyeriss_like")
    assert pruned.energy_uJ < 0.8 * dense.energy_uJ
    assert pruned.weights_kB < dense.weights_kB
    assert pruned.energy_dense_uJ == pytest.approx(dense.energy_dense_uJ)


def test_text_csv_and_figure_hold_the_network(report, tmp_path):
    assert "eyeriss_like" in str(report)
    assert "coverage 100.0%" in str(report)
    report.to_csv(tmp_path / "deep" / "rows.csv")
    with (tmp_path / "deep" / "rows.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(report.rows())
    report.plot(tmp_path / "cost.png", depth=1)
    assert (tmp_path / "cost.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cost.png", "deep"]


def test_a_figure_of_many_modules_is_cut_to_the_costliest():
    from lightning_effnn.hardware.plots import cost_figure

    rows = [{"name": f"l{i}", "kind": "gemm", "K": 8 + i, "C": 8} for i in range(60)]
    figure = cost_figure(hardware.estimate_layers(rows, "tpu_like"))
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert len(labels) == 40
    assert labels[-1] == "21 others"


def test_a_depth_below_one_is_refused(report):
    with pytest.raises(ValueError, match="depth=0"):
        report.by_module(0)


def test_totals_leave_out_what_has_no_meaning(report):
    assert all(math.isfinite(v) for v in report.totals().values())
    assert len(report.totals()) == 9


def paper_formula(model, x):
    """The sponge paper's simulator, computed from module hooks here, independently of the package."""
    nonzero = lambda t: float((t.abs() > 2.0**-126).sum())  # noqa: E731
    total = dict.fromkeys(("p", "p1", "x", "x1", "y1", "n"), 0.0)

    def hook(module, inputs, output):
        total["x"] += inputs[0].numel()
        total["x1"] += nonzero(inputs[0])
        total["y1"] += nonzero(output)
        for p in (*module.parameters(), *module.buffers()):
            total["p"] += p.numel()
            total["p1"] += nonzero(p)
        if isinstance(module, nn.Conv2d):
            window = module.kernel_size[0] * module.kernel_size[1] * module.in_channels
            total["n"] += output.numel() * window
        elif isinstance(module, nn.Linear):
            total["n"] += module.weight.numel() * len(inputs[0])
        elif isinstance(module, nn.MaxPool2d):
            total["n"] += output.numel() * module.kernel_size**2

    handles = [m.register_forward_hook(hook) for m in model.modules() if not list(m.children())]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    density = total["p1"] / total["p"] * total["x1"] / total["x"]
    return 1950 * (total["p1"] + total["x1"] + total["y1"]) + 3.7 * total["n"] * density


def test_shumailov2021_is_the_papers_formula():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, groups=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(16, 10),
    )  # fmt: skip
    x = torch.rand(1, 1, 8, 8) * (torch.rand(1, 1, 8, 8) > 0.3)
    report = hardware.estimate(hardware.trace(model, x), "shumailov2021")
    assert report.energy_uJ * 1e6 == pytest.approx(paper_formula(model, x), rel=1e-9)
    assert math.isnan(report.latency_us)
    assert math.isnan(report.latency_cycles)
    assert "-" in str(report)


def test_shumailov2021_needs_a_network():
    with pytest.raises(ValueError, match="needs a trace"):
        hardware.estimate_layers([], "shumailov2021")


def test_memories_of_any_name_are_kept_apart(tmp_path):
    text = (PRESETS / "eyeriss_like.yaml").read_text()
    plain, named = tmp_path / "plain.yaml", tmp_path / "named.yaml"
    plain.write_text(text)
    named.write_text(text.replace("sram_1M:", '"big buffer":').replace("sram_64KB:", '"small $buffer$":'))
    row = {"name": "l", "kind": "conv", "K": 16, "C": 3, "OY": 14, "OX": 14, "FY": 3, "FX": 3}
    mine, theirs = (hardware.estimate_layers([row], path) for path in (named, plain))
    renamed = {"big buffer": "sram_1M", "small $buffer$": "sram_64KB"}
    for found, expected in (
        (mine.by_level(), theirs.by_level()),
        (mine.components_by_module()["l"], theirs.components_by_module()["l"]),
    ):
        assert {renamed.get(level, level): energy for level, energy in found.items()} == expected
    first, *_, last = mine.by_level()
    assert (first, last) == ("MAC", "dram")  # from what computes to what lies farthest from it
    mine.plot(tmp_path / "cost.png")


def test_its_repr_is_a_few_lines_of_figures():
    rows = [{"name": f"layer{i}", "kind": "gemm", "K": 8 + i, "C": 8} for i in range(200)]
    report = hardware.estimate_layers(rows, "eyeriss_like")
    text = repr(report)
    assert len(text.splitlines()) <= 4
    assert len(text) < 400
    assert "layer7" not in text
    for figure in ("'eyeriss_like'", "200 layers", f"{report.energy_uJ:,.2f} uJ", f"{report.latency_us:,.2f} us"):
        assert figure in text
    layer = report.layers[7]
    assert "'layer7'" in repr(layer)
    assert len(repr(layer)) < 200
    assert len(repr(layer.mapping)) < 800


def test_names_are_shown_as_they_are_written():
    name = "block[red]<b>:smile:&"
    report = hardware.estimate_layers([{"name": name, "kind": "gemm", "K": 8, "C": 8}], "tpu_like")
    assert name in str(report)
    page = report._repr_html_()
    assert "block[red]&lt;b&gt;:smile:&amp;" in page
    assert page.count("<tr>") == 3  # headings, the layer, the total
    assert f"{report.energy_uJ:,.2f}" in page


def test_its_text_is_plain_wherever_it_is_asked_for(report, monkeypatch):
    plain = str(report)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert str(report) == plain
    assert "\x1b" not in plain
