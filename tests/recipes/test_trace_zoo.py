"""The benchmark that traces other people's networks: what its rows say, tried on networks that are made here."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_effnn import hardware
from lightning_effnn.recipes.benchmarks import _trace_zoo_language as language
from lightning_effnn.recipes.benchmarks import trace_zoo
from lightning_effnn.recipes.benchmarks._trace_zoo import Entry, masked_ids, positional, words


class GrowingWithTheBatch(nn.Module):
    """As many products a sample as there are samples in the batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, 9))

    def forward(self, x):
        for _ in range(len(x)):
            x = x @ self.weight
        return x


class Broken(nn.Module):
    def forward(self, x):
        raise ValueError("no such thing")


def entry(name, build, by_hand=None):
    return Entry(name, "here", build, positional((9,)), by_hand=by_hand)


LINEAR = entry("linear", lambda: nn.Linear(9, 5), by_hand=45)
GROWING = entry("growing", GrowingWithTheBatch)
LAZY = entry("lazy", lambda: nn.LazyLinear(5))
BROKEN = entry("broken", Broken)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the recipe on these entries as if in the environment; what it returned, and its rows."""

    def of(*entries, options=()):
        monkeypatch.setattr(trace_zoo, "zoo", lambda: list(entries))
        monkeypatch.setattr(trace_zoo, "LIBRARIES", ())
        monkeypatch.setattr(trace_zoo, "_prepare", lambda: None)
        monkeypatch.setattr(trace_zoo.sys, "prefix", str(tmp_path.resolve() / "trace_zoo"))
        out = tmp_path / "deep" / "rows.json"
        code = trace_zoo.main(["--folder", str(tmp_path), "--out", str(out), *options])
        return code, {row["name"]: row for row in json.loads(out.read_text())["rows"]}

    return of


def test_a_network_whose_cost_is_the_same_in_all_batches_agrees(run, capsys):
    code, rows = run(LINEAR)
    assert code == 0
    assert set(rows["linear"]["deviation"].values()) == {0.0}
    assert (rows["linear"]["macs"], rows["linear"]["to hand"]) == (45, 1.0)
    assert "1 of 1 equal to 0.1%; 0 others with a note of the trace; 0 refused, 0 failed" in capsys.readouterr().out


def test_a_network_that_does_more_a_sample_in_larger_batches_is_found(run, capsys):
    code, rows = run(LINEAR, GROWING)
    assert code == 1
    assert rows["growing"]["deviation"]["macs"] == pytest.approx(7)
    assert not trace_zoo.agrees(rows["growing"])
    assert "1 of 2 equal" in capsys.readouterr().out


def test_what_the_tracing_refuses_is_told_from_what_breaks(run):
    code, rows = run(LAZY)
    assert code == 0
    assert "lazy modules" in rows["lazy"]["refused"]
    code, rows = run(BROKEN)
    assert code == 1
    assert "no such thing" in rows["broken"]["error"]
    assert "refused" not in rows["broken"]


def test_rows_of_earlier_runs_stay_until_they_are_measured_again(run):
    run(LINEAR, GROWING, options=["--only", "growing"])
    _, rows = run(LINEAR, GROWING, options=["--limit", "1"])
    assert set(rows) == {"growing", "linear"}
    _, rows = run(Entry("growing", "here", lambda: nn.Linear(9, 9), positional((9,))))
    assert trace_zoo.agrees(rows["growing"])
    assert len(rows) == 2


def test_without_its_packages_it_says_why(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(trace_zoo, "installed", lambda folder, requirements: "ERROR: no such thing")
    assert trace_zoo.main(["--folder", str(tmp_path)]) == 2
    assert "no such thing" in capsys.readouterr().err


def test_the_zoo_is_large_its_names_differ_and_listing_it_needs_no_package():
    names = [(entry.library, entry.name) for entry in trace_zoo.zoo()]
    assert len(names) == len(set(names)) >= 200
    assert {library for library, _ in names} == set(trace_zoo.LIBRARIES)


def test_batches_are_copies_of_one_sample():
    batch = masked_ids(6, absent=2)(3)
    assert all(torch.equal(row, batch["input_ids"][0]) for row in batch["input_ids"])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0]] * 3
    assert torch.equal(words(1), words(5)[:1])


def test_a_mixture_of_experts_costs_what_its_tokens_take_by_hand():
    dense, mixture = language.LLAMA, language.MIXTRAL
    router, expert = 2 * 12 * 32 * 4, 3 * 32 * 64
    assert mixture - dense == router + 2 * 12 * expert  # a second expert a token in each of two layers


def test_the_card_names_the_number_of_networks():
    card = Path(hardware.__file__).parent / "README.md"
    assert f"traces {len(trace_zoo.zoo())} networks" in card.read_text()
