"""scvi-tools: a variational autoencoder of gene counts in cells, its own Trainer on ``lightning``; its generated cells.

Needs scvi-tools; ``make wild`` makes an environment for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

REQUIREMENTS = ["scvi-tools"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if all that was asked for came out."""
    from lightning_effnn.recipes.wild._common import run

    return run("scvi", version("scvi-tools"), "negative evidence bound of held-out cells", train, argv)


def train(callbacks: list[Any]) -> Any:
    """Train through SCVI, which builds module, training plan and trainer by itself."""
    import scvi

    from lightning_effnn.recipes.wild._common import Trained

    scvi.settings.seed = 0
    cells = scvi.data.synthetic_iid(batch_size=300, n_genes=100)
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch", labels_key="labels")
    model = scvi.model.SCVI(cells, n_hidden=64, n_latent=8)
    model.train(
        max_epochs=20, accelerator="cpu", train_size=0.8, check_val_every_n_epoch=1, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False,
    )  # fmt: skip
    bound = model.get_elbo(indices=model.validation_indices)
    return Trained(model.trainer.lightning_module, model.trainer, -float(bound))


if __name__ == "__main__":
    raise SystemExit(main())
