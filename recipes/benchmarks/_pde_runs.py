"""One run of one solver on one problem, in a process of its own: errors over the seconds of one core.

    python -m lightning_effnn.recipes.benchmarks._pde_runs burgers ours 0 60

Prints one line of JSON: ``[[seconds, error], ...]``. Seconds are the process's own, on one thread, without the time
that measuring errors takes.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

POINTS = 8192
"""Where errors are measured: the same for all."""

Curve = list[tuple[float, float]]


class Clock:
    """Seconds of this process that don't go into measuring, and the errors so far."""

    def __init__(self, limit: float) -> None:
        self.limit, self.spent, self.start = limit, 0.0, time.process_time()
        self.curve: Curve = []

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.process_time() - self.start - self.spent

    def measure(self, error: Callable[[], float]) -> bool:
        """Note an error; say whether the time is over."""
        seconds, before = self.seconds, time.process_time()
        self.curve.append((round(seconds, 3), error()))
        self.spent += time.process_time() - before
        return seconds > self.limit


def ours(name: str, variant: str, seed: int, limit: float) -> Curve:
    """Run our solver with its defaults, on plain coordinates, with Adam, or with points spread evenly."""
    import lightning as L
    import torch

    from lightning_effnn.modules import PDESolver
    from lightning_effnn.pde import Field

    torch.set_num_threads(1)
    problem = importlib.import_module(f"lightning_effnn.recipes.pde.{name}").problem()
    field = Field("none", (20, 20)) if variant == "plain" else None
    adam = variant == "adam"
    every = 50 if adam else 2

    def error(solver: PDESolver) -> float:
        return max(solver.rel_l2(POINTS).values())

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step % every == 0 and clock.measure(lambda: error(pl_module)):
                trainer.should_stop = True

    middle = torch.full((2, len(problem.domain.names)), 0.3, dtype=torch.float64)
    problem.solution(problem.domain.interior(middle))  # a reference's table is made before the clock starts
    clock = Clock(limit)
    solver = PDESolver(
        problem, field, "adam" if adam else "lm", adaptive=0.0 if variant == "uniform" else 2.0,
        steps_per_epoch=100 if adam else 10, patience=0, seed=seed,
    )  # fmt: skip
    trainer = L.Trainer(
        max_epochs=100_000, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Watch()],
    )  # fmt: skip
    trainer.fit(solver)
    return clock.curve


def deepxde(name: str, variant: str, seed: int, limit: float) -> Curve:
    """Run DeepXDE on the same problem, as its own example sets it up, or, without one, as most of its examples do."""
    os.environ["DDE_BACKEND"] = "pytorch"
    import deepxde as dde
    import numpy as np
    import torch

    from lightning_effnn.pde import Field, Residuals, Sampler
    from lightning_effnn.recipes.benchmarks._pde_deepxde import SETTINGS

    torch.set_num_threads(1)
    dde.config.set_random_seed(seed)
    problem = importlib.import_module(f"lightning_effnn.recipes.pde.{name}").problem()
    field = Field()
    field.bind(problem.domain.low, problem.domain.high, len(problem.fields))
    residuals = Residuals(problem, field)
    where, _ = Sampler(POINTS, seed=1).spread(residuals, residuals.terms[0], POINTS)
    known = problem.solution(where).numpy()
    points = where.numpy().astype(np.float32)
    settings = SETTINGS[name]()
    model = dde.Model(settings.data, settings.net)

    def error() -> float:
        found = model.predict(points)
        return float((np.linalg.norm(found - known, axis=0) / np.linalg.norm(known, axis=0)).max())

    class Over(Exception):
        pass

    class Watch(dde.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self) -> None:
            step = self.model.train_state.step
            if (step % 200 == 0 or settings.phase == "lbfgs") and clock.measure(error):
                raise Over

    clock = Clock(limit)
    try:
        model.compile("adam", lr=1e-3, loss_weights=settings.weights)
        model.train(iterations=settings.iterations, display_every=10**9, callbacks=[Watch()], verbose=0)
        settings.phase = "lbfgs"
        dde.optimizers.config.set_LBFGS_options(maxiter=15_000)
        dde.optimizers.config.LBFGS_options["iter_per_step"] = 100
        model.compile("L-BFGS", loss_weights=settings.weights)
        model.train(display_every=10**9, callbacks=[Watch()], verbose=0)
        clock.measure(error)
    except Over:
        pass
    return clock.curve


def main() -> None:
    """Run what the arguments name, print its curve."""
    name, variant, seed, limit = sys.argv[1:]
    run = deepxde if variant == "deepxde" else ours
    print(json.dumps(run(name, variant, int(seed), float(limit))))


if __name__ == "__main__":
    main()
