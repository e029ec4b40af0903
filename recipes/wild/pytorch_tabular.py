"""pytorch-tabular: a transformer over features (FT-Transformer), ``pytorch_lightning``; scikit-learn's tumours.

Needs pytorch-tabular; ``make wild`` makes an environment for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

REQUIREMENTS = ["pytorch-tabular"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if all that was asked for came out."""
    from lightning_effnn.recipes.wild._common import run

    return run("pytorch_tabular", version("pytorch_tabular"), "test accuracy", train, argv)


def train(callbacks: list[Any]) -> Any:
    """Train through TabularModel, which builds model, data and trainer by itself."""
    import pytorch_lightning as pl
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import FTTransformerConfig
    from sklearn.datasets import load_breast_cancer
    from sklearn.model_selection import train_test_split

    from lightning_effnn.recipes.wild._common import Trained

    pl.seed_everything(0, verbose=False)
    table = load_breast_cancer(as_frame=True).frame
    table.columns = [name.replace(" ", "_") for name in table.columns]
    fitted, test = train_test_split(table, test_size=0.3, random_state=0, stratify=table["target"])
    learned, held_out = train_test_split(fitted, test_size=0.2, random_state=0, stratify=fitted["target"])
    tabular = TabularModel(
        data_config=DataConfig(
            target=["target"], continuous_cols=list(table.columns[:10]), categorical_cols=[], num_workers=0
        ),
        model_config=FTTransformerConfig(
            task="classification", input_embed_dim=16, num_heads=4, num_attn_blocks=2, learning_rate=3e-3
        ),
        optimizer_config=OptimizerConfig(),
        trainer_config=TrainerConfig(
            batch_size=64, max_epochs=12, accelerator="cpu", progress_bar="none", load_best=False, early_stopping=None,
            checkpoints=None, seed=0,
        ),
        verbose=False,
        suppress_lightning_logger=True,
    )  # fmt: skip
    tabular.fit(train=learned, validation=held_out, callbacks=callbacks)
    predicted = tabular.predict(test)["target_prediction"]
    accuracy = float((predicted.astype(int).to_numpy() == test["target"].to_numpy()).mean())
    return Trained(tabular.model, tabular.trainer, accuracy)


if __name__ == "__main__":
    raise SystemExit(main())
