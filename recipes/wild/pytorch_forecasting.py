"""pytorch-forecasting: a temporal fusion transformer (LSTM and attention), ``lightning``; its generated series.

Needs pytorch-forecasting; ``make wild`` makes an environment for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

REQUIREMENTS = ["pytorch-forecasting"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if all that was asked for came out."""
    from lightning_effnn.recipes.wild._common import run

    return run("pytorch_forecasting", version("pytorch-forecasting"), "validation MAE", train, argv)


def train(callbacks: list[Any]) -> Any:
    """Train as pytorch-forecasting's tutorial does, smaller."""
    import lightning.pytorch as pl
    from pytorch_forecasting import MAE, QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet
    from pytorch_forecasting.data import GroupNormalizer
    from pytorch_forecasting.data.examples import generate_ar_data

    from lightning_effnn.recipes.wild._common import QUIET, Trained

    pl.seed_everything(0, verbose=False)
    table = generate_ar_data(n_series=20, timesteps=60, seed=0).astype({"series": str})
    ahead, back = 6, 18
    training = TimeSeriesDataSet(
        table[table.time_idx <= table.time_idx.max() - ahead], time_idx="time_idx", target="value",
        group_ids=["series"], max_encoder_length=back, max_prediction_length=ahead, static_categoricals=["series"],
        time_varying_known_reals=["time_idx"], time_varying_unknown_reals=["value"],
        target_normalizer=GroupNormalizer(groups=["series"]),
    )  # fmt: skip
    validation = TimeSeriesDataSet.from_dataset(training, table, predict=True, stop_randomization=True)
    loaders = [
        training.to_dataloader(train=True, batch_size=64, num_workers=0),
        validation.to_dataloader(train=False, batch_size=64, num_workers=0),
    ]
    model = TemporalFusionTransformer.from_dataset(
        training, learning_rate=0.02, hidden_size=16, attention_head_size=2, dropout=0.0, hidden_continuous_size=8,
        loss=QuantileLoss(), log_interval=-1,
    )  # fmt: skip
    trainer = pl.Trainer(max_epochs=10, gradient_clip_val=0.1, limit_train_batches=10, callbacks=callbacks, **QUIET)
    trainer.fit(model, *loaders)
    settings = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    found = model.predict(loaders[1], return_y=True, trainer_kwargs=settings)
    return Trained(model, trainer, float(MAE()(found.output, found.y)))


if __name__ == "__main__":
    raise SystemExit(main())
