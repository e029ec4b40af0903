"""Recipes of equations run from the command line; references are right."""

import importlib
import json

import pytest
import torch

from lightning_effnn.cli.main import main
from lightning_effnn.pde import Field, Residuals
from lightning_effnn.recipes.benchmarks._pde_zoo import ZOO
from lightning_effnn.recipes.pde import _references

PROBLEMS = ["poisson", "burgers", "helmholtz", "helmholtz_waves", "helmholtz_3d", "heat", "allen_cahn", "kovasznay",
            "poisson_lshape", "inverse_burgers"]  # fmt: skip


class Reference(torch.nn.Module):
    """The known solution as a field, as far as it can be derived."""

    def __init__(self, problem):
        super().__init__()
        self.problem, self.none = problem, torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x):
        return self.problem.solution(x) + 0 * self.none


@pytest.mark.parametrize("name", ["poisson", "helmholtz", "helmholtz_waves", "helmholtz_3d", "heat", "kovasznay"])
@pytest.mark.filterwarnings("ignore:derivatives of")
def test_manufactured_solutions_satisfy_equation_and_conditions(name):
    satisfied(importlib.import_module(f"lightning_effnn.recipes.pde.{name}").problem())


@pytest.mark.parametrize("name", sorted(ZOO))
@pytest.mark.filterwarnings("ignore:derivatives of")
def test_solutions_that_defaults_are_tried_on_satisfy_theirs(name):
    satisfied(ZOO[name]())


def satisfied(problem):
    residuals = Residuals(problem, Reference(problem))
    for term in problem.terms:
        unit = torch.rand(32, len(problem.domain.names), generator=torch.Generator().manual_seed(0)).double()
        block = residuals.block(term, *problem.sample(term, unit))
        scale = max(1.0, float(problem.solution(block.points).abs().max()))
        for rest in residuals.at(block):
            assert rest.abs().max() < 1e-7 * scale


def differences(function, x, t, h):
    """u, u_x, u_xx, u_t by central differences."""
    u, right, left = function(x, t), function(x + h, t), function(x - h, t)
    return (
        u,
        (right - left) / (2 * h),
        (right - 2 * u + left) / h**2,
        (function(x, t + h) - function(x, t - h)) / (2 * h),
    )


def test_burgers_reference():
    x, t = torch.linspace(-0.9, 0.9, 8).double(), torch.full((8,), 0.3).double()
    u, slope, curvature, speed = differences(_references.burgers, x, t, 1e-4)
    assert (speed + u * slope - _references.NU * curvature).abs().max() < 1e-4
    assert torch.allclose(_references.burgers(x, 0 * t), -torch.sin(torch.pi * x))


def test_allen_cahn_reference():
    pytest.importorskip("scipy")
    x, t = torch.linspace(-0.9, 0.9, 8).double(), torch.full((8,), 0.3).double()
    u, _, curvature, speed = differences(_references.allen_cahn, x, t, 5e-3)
    assert (speed - 0.001 * curvature - 5 * (u - u**3)).abs().max() < 0.02
    assert torch.allclose(_references.allen_cahn(x, 0 * t), x**2 * torch.cos(torch.pi * x), atol=1e-4)


def test_lshape_reference():
    pytest.importorskip("scipy")
    x, y = torch.tensor([-0.5, 0.5, -0.5]).double(), torch.tensor([0.5, -0.5, -0.5]).double()
    h = 0.05
    u = _references.lshape(x, y)
    around = sum(_references.lshape(x + a, y + b) for a, b in ((h, 0), (-h, 0), (0, h), (0, -h)))
    assert torch.allclose((around - 4 * u) / h**2, torch.full((3,), -1.0).double(), atol=0.02)
    assert u[0].item() == pytest.approx(u[1].item(), rel=1e-9)


@pytest.mark.trains
def test_recipe_solves_compares_and_draws(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--epochs", "10", "--points", "512", "--out", str(tmp_path)]
    assert main(["run", "pde/poisson", *arguments]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert row["rel_l2"]["u"] < 5e-2
    assert (tmp_path / "solution.png").exists()
    assert (tmp_path / "seed_0.safetensors").exists()
    assert "relative L2 error" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in PROBLEMS if n not in ("poisson", "poisson_lshape")])
def test_every_recipe_gets_within_a_few_per_cent(name, tmp_path):
    pytest.importorskip("scipy")
    assert main(["run", f"pde/{name}", "--epochs", "10", "--out", str(tmp_path)]) == 0
    (row,) = json.loads((tmp_path / "results.json").read_text())
    assert max(row["rel_l2"].values()) < 5e-2


def test_benchmark_runs_draws_and_goes_on_from_what_is_there(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--problems", "heat", "--seconds", "0.5", "--out", str(tmp_path / "r.json"), "--plot",
                 str(tmp_path / "r.png")]  # fmt: skip
    found = []
    for _ in range(2):
        assert main(["run", "benchmarks/pde", *arguments]) == 0
        found.append((tmp_path / "r.json").read_text())
    assert found[0] == found[1]
    (row,) = json.loads(found[0])
    seconds, errors = zip(*row["curve"], strict=True)  # of one epoch at least, however slow the machine
    assert list(seconds) == sorted(seconds)
    assert all(0 < error < 2 for error in errors)
    assert (tmp_path / "r.png").exists()


@pytest.mark.slow
def test_benchmark_runs_the_peer(tmp_path):
    pytest.importorskip("deepxde")
    arguments = ["--problems", "heat", "--variants", "--peers", "deepxde", "--peer-seconds", "3"]
    assert main(["run", "benchmarks/pde", *arguments, "--out", str(tmp_path / "r.json"), "--plot",
                 str(tmp_path / "r.png")]) == 0  # fmt: skip
    (row,) = json.loads((tmp_path / "r.json").read_text())
    assert row["curve"]


def test_defaults_benchmark(tmp_path, capsys):
    arguments = ["--only", "oscillator", "--epochs", "1", "--out", str(tmp_path / "r.json")]
    for _ in range(2):
        assert main(["run", "benchmarks/pde_defaults", *arguments]) == 0
    assert len(json.loads((tmp_path / "r.json").read_text())) == 1
    assert "oscillator" in capsys.readouterr().out


def test_fields_can_be_made_for_every_recipe():
    for name in PROBLEMS:
        problem = importlib.import_module(f"lightning_effnn.recipes.pde.{name}").problem()
        field = Field()
        field.bind(problem.domain.low, problem.domain.high, len(problem.fields))
        assert Residuals(problem, field).terms
