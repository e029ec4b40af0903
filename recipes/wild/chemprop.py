"""chemprop: message passing on molecules' graphs, ``lightning``; regression of a property that RDKit computes.

Needs chemprop; ``make wild`` makes an environment for it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

REQUIREMENTS = ["chemprop"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if all that was asked for came out."""
    from lightning_effnn.recipes.wild._common import run

    return run("chemprop", version("chemprop"), "test RMSE of Crippen logP", train, argv)


def molecules(n: int) -> list[str]:
    """Chains and rings put together at random, as SMILES."""
    draw = random.Random(0)
    middle = ["C", "CC", "O", "N", "C(=O)", "c1ccc(cc1)", "C(C)", "C(F)", "S", "C(Cl)", "C1CCN(CC1)"]
    ends = ["C", "O", "N", "F", "Cl", "c1ccccc1", "C(=O)O", "C#N"]
    start = ["C", "CC", "Oc1ccc(cc1)", "NC", "FC", "N#CC", "c1ccc(cc1)"]
    return ["".join([draw.choice(start), *draw.choices(middle, k=draw.randint(1, 4)), draw.choice(ends)])
            for _ in range(n)]  # fmt: skip


def train(callbacks: list[Any]) -> Any:
    """Train a message passing network as chemprop's documentation does."""
    import lightning.pytorch as pl
    from chemprop import data, models, nn
    from rdkit import Chem
    from rdkit.Chem.Crippen import MolLogP

    from lightning_effnn.recipes.wild._common import QUIET, Trained

    pl.seed_everything(0, verbose=False)
    found = [text for text in molecules(400) if Chem.MolFromSmiles(text)]
    points = [data.MoleculeDatapoint.from_smi(text, [MolLogP(Chem.MolFromSmiles(text))]) for text in found]
    cut, last = int(0.7 * len(points)), int(0.85 * len(points))
    parts = [data.MoleculeDataset(part) for part in (points[:cut], points[cut:last], points[last:])]
    scaler = parts[0].normalize_targets()
    parts[1].normalize_targets(scaler)
    loaders = [
        data.build_dataloader(part, batch_size=32, num_workers=0, shuffle=i == 0) for i, part in enumerate(parts)
    ]
    transform = nn.UnscaleTransform.from_standard_scaler(scaler)
    model = models.MPNN(
        nn.BondMessagePassing(d_h=64, depth=3),
        nn.MeanAggregation(),
        nn.RegressionFFN(input_dim=64, hidden_dim=64, output_transform=transform),
        batch_norm=True,
        metrics=[nn.metrics.RMSE()],
        max_lr=5e-3,
        final_lr=5e-4,
    )
    trainer = pl.Trainer(max_epochs=20, callbacks=callbacks, **QUIET)
    trainer.fit(model, loaders[0], loaders[1])
    predicted: Any = trainer.predict(model, loaders[2])
    truth = np.concatenate([np.atleast_1d(point.y) for point in points[last:]])
    error = np.concatenate([batch.numpy().ravel() for batch in predicted]) - truth
    return Trained(model, trainer, float(np.sqrt((error**2).mean())))


if __name__ == "__main__":
    raise SystemExit(main())
