"""Solving equations in a Trainer."""

import math
import warnings

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_effnn import compression, hardware, pde
from lightning_effnn.callbacks import FocusedCompression, HardwareEnergyMonitor
from lightning_effnn.modules import PDESolver

pytestmark = pytest.mark.trains


def poisson(**options):
    return pde.Problem(
        pde.Box(x=(0, 1), y=(0, 2)),
        lambda u, c: pde.laplacian(u) + 1.25 * math.pi**2 * torch.sin(math.pi * c.x) * torch.sin(math.pi * c.y / 2),
        [pde.Dirichlet(0.0)],
        reference=lambda c: torch.sin(math.pi * c.x) * torch.sin(math.pi * c.y / 2),
        **options,
    )


def trainer(epochs, **options):
    options = {"logger": False, "enable_checkpointing": False} | options
    return L.Trainer(max_epochs=epochs, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu",
                     **options)  # fmt: skip


def small(problem=None, **options):
    options = {"field": pde.Field(hidden=(8,)), "points": 128, "boundary_points": 32, "steps_per_epoch": 4} | options
    return PDESolver(problem or poisson(), **options)


@pytest.mark.parametrize("exact", [True, False])
def test_solves_with_conditions_built_in_or_learned(exact):
    solver, fit = small(exact=exact, field=pde.Field(hidden=(16,))), trainer(8)
    fit.fit(solver)
    assert solver.rel_l2()["u"] < 1e-2
    assert ("pde/boundary" in fit.logged_metrics) is not exact
    assert fit.logged_metrics["pde/rel_l2"] < 1e-2
    edge = solver(torch.tensor([[0.0, 0.3], [1.0, 2.0]]))
    assert edge.abs().max() < (1e-12 if exact else 1e-2)


@pytest.mark.parametrize(("optimizer", "steps"), [("adam", 25), ("lbfgs", 2), ("adam+lbfgs", 4)])
def test_first_order_methods_get_nearer(optimizer, steps):
    solver = small(optimizer=optimizer, lr=1e-2, steps_per_epoch=steps)
    before = solver.rel_l2()["u"]
    trainer(6).fit(solver)
    assert solver.rel_l2()["u"] < 0.5 * before


def test_many_parameters_go_by_conjugate_gradients():
    solver = small(field=pde.Field(hidden=(64, 64)), points=64)
    assert sum(p.numel() for p in solver.parameters()) > 4000
    before = solver.rel_l2()["u"]
    trainer(2).fit(solver)
    assert solver.rel_l2()["u"] < 0.3 * before


class Odd(torch.nn.Module):
    """A field with a function that has no rule."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(1, 8).double(), torch.nn.Linear(8, 1).double()

    def forward(self, x):
        return self.last(torch.atan(self.first(x)))


def test_any_module_can_be_the_field_with_notices():
    problem = pde.Problem(
        pde.Box(x=(0, 1)), lambda u, c: u.xx + math.pi**2 * torch.sin(math.pi * c.x), [pde.Dirichlet(0.0)],
        reference=lambda c: torch.sin(math.pi * c.x),
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        solver = small(problem, field=Odd(), points=64)
        trainer(3).fit(solver)
    told = " ".join(str(w.message) for w in noticed)
    assert "by autograd" in told
    assert "conjugate gradients" in told
    assert solver.rel_l2()["u"] < 0.02


def test_periodic_by_the_encoding():
    problem = pde.Problem(
        pde.Box(x=(0, 2), t=(0, 1)), lambda u, c: u.t + u.x,
        [pde.Initial(lambda c: torch.sin(math.pi * c.x)), pde.Periodic("x")],
        reference=lambda c: torch.sin(math.pi * (c.x - c.t)),
    )  # fmt: skip
    solver = small(problem, field=pde.Field(hidden=(16,)))
    assert [t.name for t in solver.residuals.terms] == ["residual"]
    trainer(12).fit(solver)
    assert solver.rel_l2()["u"] < 0.02
    ends = solver(torch.tensor([[0.0, 0.7], [2.0, 0.7]]))
    assert torch.allclose(ends[0], ends[1], atol=1e-12)


def test_points_learned_by_heart_hold_steps_back():
    few = small(field=pde.Field(hidden=(16, 16)), points=48, steps_per_epoch=10)  # more parameters than points
    trainer(6).fit(few)
    enough = small(points=512)
    trainer(6).fit(enough)
    held, free = (s._lm.param_groups[0]["least_damping"] for s in (few, enough))
    assert held > 1e-9
    assert free == 1e-15


def test_unknown_coefficient_and_system():
    problem = pde.Problem(
        pde.Box(t=(0, 3)), lambda x, v, c: (x.t - v, v.t + c.k * x),
        [pde.Initial(1.0, of="x"), pde.Initial(0.0, of="v"),
         pde.Data(torch.linspace(0, 3, 20)[:, None], torch.cos(2 * torch.linspace(0, 3, 20)), of="x")],
        fields=("x", "v"), unknowns={"k": 1.0}, reference=lambda c: (torch.cos(2 * c.t), -2 * torch.sin(2 * c.t)),
    )  # fmt: skip
    solver, fit = small(problem), trainer(15)
    fit.fit(solver)
    assert solver.unknowns.values()["k"] == pytest.approx(4.0, rel=1e-2)
    assert fit.logged_metrics["pde/k"] == pytest.approx(4.0, rel=0.05)


def test_ends_by_itself_and_keeps_the_best():
    solver, fit = small(patience=2), trainer(200)
    fit.fit(solver)
    assert fit.current_epoch < 199
    assert solver.rel_l2()["u"] < 1e-2


def weights(solver):
    return torch.cat([p.detach().flatten() for p in solver.parameters()])


@pytest.mark.parametrize("optimizer", ["lm", "adam"])
def test_resumed_fit_ends_bit_identical(tmp_path, optimizer):
    def run(epochs, resume=None):
        keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
        solver = small(optimizer=optimizer, patience=0, exact=False)
        trainer(epochs, callbacks=[keep], enable_checkpointing=True).fit(solver, ckpt_path=resume)
        return solver

    whole = run(4)
    resumed = run(4, resume=tmp_path / "epoch=1.ckpt")
    assert torch.equal(weights(whole), weights(resumed))


def test_same_seed_same_solution_other_seed_another():
    solvers = [small(seed=seed) for seed in (0, 0, 1)]
    for solver in solvers:
        trainer(2).fit(solver)
    assert torch.equal(weights(solvers[0]), weights(solvers[1]))
    assert not torch.equal(weights(solvers[0]), weights(solvers[2]))


def test_saved_and_loaded(tmp_path):
    solver = small()
    trainer(1).fit(solver)
    solver.save(tmp_path / "u.safetensors")
    x = torch.rand(5, 2)
    assert torch.equal(small().load(tmp_path / "u.safetensors")(x), solver(x))
    with pytest.raises(ValueError, match="another field"):
        small(field=pde.Field(hidden=(9,))).load(tmp_path / "u.safetensors")
    other = pde.Problem(pde.Box(x=(0, 1), y=(0, 3)), lambda u, c: pde.laplacian(u))
    with pytest.raises(ValueError, match="high are"):
        small(other).load(tmp_path / "u.safetensors")
    (tmp_path / "junk").write_bytes(b"junk")
    for path in ("junk", "none"):
        with pytest.raises(ValueError, match="no file that"):
            small().load(tmp_path / path)


def test_solution_can_be_derived_by_points_that_ask_for_it():
    solver = small()
    points = torch.rand(5, 2, dtype=torch.float64)
    assert not solver(points).requires_grad
    points.requires_grad_()
    (slope,) = torch.autograd.grad(solver(points).sum(), points)
    step = torch.tensor([1e-6, 0.0], dtype=torch.float64)
    with torch.no_grad():
        expected = (solver(points + step) - solver(points - step))[:, 0] / 2e-6
    assert torch.allclose(slope[:, 0], expected, atol=1e-6)


@pytest.mark.parametrize(("points", "message"), [
    (torch.zeros(3, 1), r"\[N, 2\]"), (torch.zeros(2), r"\[N, 2\]"),
    (torch.tensor([[0.5, 0.5], [1.5, 0.5]]), "1 of 2 points are outside the domain, for example x=1.5, y=0.5"),
])  # fmt: skip
def test_points_that_mean_nothing(points, message):
    with pytest.raises(ValueError, match=message):
        small()(points)


@pytest.mark.parametrize(("options", "message"), [
    ({"optimizer": "sgd"}, "optimizer"), ({"points": 0}, "points"), ({"adaptive": -1}, "adaptive"),
    ({"steps_per_epoch": 0}, "steps_per_epoch"), ({"field": pde.Field(activation="relu")}, "order 2"),
    ({"field": pde.Field(pde.FactoredGrid())}, None),
])  # fmt: skip
def test_arguments(options, message):
    if message is None:
        small(**options)
        return
    with pytest.raises(ValueError, match=message):
        small(**options)


def test_half_precision_is_refused():
    with pytest.raises(MisconfigurationException, match="precision"):
        trainer(1, precision="bf16-mixed").fit(small())


def test_double_precision_of_the_trainer_works():
    solver = small()
    trainer(6, precision="64-true").fit(solver)
    assert solver.rel_l2()["u"] < 1e-2


def test_nan_ends_the_fit_with_the_best_parameters():
    state = {"broken": False}
    problem = pde.Problem(
        pde.Box(x=(0, 1)),
        lambda u, c: u.xx + (math.nan if state["broken"] else 1.0) * (1 + 0 * u),
        [pde.Dirichlet(0.0)],
    )
    solver = small(problem)

    class Break(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            state["broken"] = trainer.current_epoch == 3

    fit = trainer(50, callbacks=[Break()])
    with pytest.warns(UserWarning, match="best parameters so far"):
        fit.fit(solver)
    assert fit.current_epoch <= 4
    assert solver(torch.tensor([[0.5]])).item() == pytest.approx(0.125, rel=1e-2)


def test_causal_emphasis_falls_with_time():
    problem = pde.Problem(pde.Box(x=(0, 1), t=(0, 1)), lambda u, c: u.t - u.xx + 1, [pde.Initial(0.0)])
    solver = small(problem, causal=5.0)
    (block,) = solver.residuals.blocks = solver.sampler.draw(solver.residuals)
    early, late = block.points[:, 1] < 0.1, block.points[:, 1] > 0.9
    assert block.emphasis[early].mean() > 2 * block.emphasis[late].mean()
    assert solver.residuals().isfinite().all()


def test_adaptive_points_gather_where_the_residual_is():
    problem = pde.Problem(pde.Box(x=(0, 1), y=(0, 1)), lambda u, c: 0 * u + torch.exp(-200 * (c.x - 0.5) ** 2))
    solver = small(problem, points=1000)
    first, second = (solver.sampler.draw(solver.residuals)[0].points[:, 0] for _ in range(2))
    near = [float(((x - 0.5).abs() < 0.1).double().mean()) for x in (first, second)]
    assert near[0] == pytest.approx(0.2, abs=0.03)
    assert near[1] > 0.4


def test_coarse_to_fine_opens_during_the_fit():
    encoding = pde.PositionalEncoding(3, coarse_to_fine=True)
    solver = small(field=pde.Field(encoding, hidden=(8,)), patience=0)
    seen = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(float(encoding.progress))

    trainer(8, callbacks=[Watch()]).fit(solver)
    assert seen[0] == 0.0
    assert seen[2] == 0.5
    assert seen[-1] == 1.0


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    small().plot(tmp_path / "u.png")
    small(pde.Problem(pde.Disc().over(t=(0, 1)), lambda u, c: u.t - pde.laplacian(u))).plot(tmp_path / "v.png")
    small(pde.Problem(pde.Box(t=(0, 1)), lambda u, c: u.t)).plot(tmp_path / "w.png")
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in "uvw")


def test_composes_with_energy_monitor_and_compression(tmp_path):
    solver = small(field=pde.Field(hidden=(16, 16)), patience=0, optimizer="adam", steps_per_epoch=20, lr=1e-2)
    callbacks = [HardwareEnergyMonitor("eyeriss_like"), FocusedCompression(sparsity=0.5, export=tmp_path / "u.effnn")]
    fit = trainer(10, callbacks=callbacks)
    fit.fit(solver)
    assert float(fit.logged_metrics["hw/energy_uJ"]) > 0
    assert callbacks[1].projector.sparsity >= 0.5
    assert float(fit.logged_metrics["compress/sparsity"]) == pytest.approx(callbacks[1].report.sparsity)
    again = small(field=pde.Field(hidden=(16, 16)), seed=5)
    compression.load_compressed(tmp_path / "u.effnn", again)
    x = torch.rand(5, 2)
    assert torch.equal(again(x), solver(x))
    report = hardware.estimate(hardware.trace(solver.field, x.double()), "eyeriss_like")
    assert report.coverage == 1.0
