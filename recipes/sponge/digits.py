"""What the worst input costs a small CNN: undefended, with a penalty on natural inputs, trained against sponges.

    effnn run sponge/digits
    effnn run sponge/digits --seeds 3 --weights 1 3 5 --out runs/sponge_digits/results.json

Embedded data, half a minute a fit. Each network is attacked on test images within ``--eps`` and without a bound, by
noise, L-BFGS, projected gradients and a genetic algorithm, which no network has met in training; the energy of each
input is that of its own trace. Results are kept in ``--out`` as they come; what is there is not run again.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_effnn.data import DigitsDataModule
from lightning_effnn.modules import ImageClassifier, SmallCNN
from lightning_effnn.recipes.sponge._comparison import Study, compare

STUDY = Study(
    name="sponge/digits",
    data=lambda seed, limit: DigitsDataModule(seed=seed),
    model=lambda: ImageClassifier(SmallCNN(), lr=3e-3),
    epochs=25,
    weight=3.0,
    eps=0.3,
    share=0.5,
    inputs=32,
    precision="32-true",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table, draw the figure."""
    return compare(STUDY, __doc__ or "", argv)


if __name__ == "__main__":
    raise SystemExit(main())
