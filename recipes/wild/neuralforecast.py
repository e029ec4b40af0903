"""neuralforecast: a patched transformer, ``pytorch_lightning``, steps in place of epochs; the air passengers.

Needs neuralforecast; ``make wild`` makes an environment for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

REQUIREMENTS = ["neuralforecast"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if all that was asked for came out."""
    from lightning_effnn.recipes.wild._common import run

    return run("neuralforecast", version("neuralforecast"), "test MAE, thousand passengers", train, argv)


def train(callbacks: list[Any]) -> Any:
    """Train PatchTST through NeuralForecast, forecast the last year."""
    import pytorch_lightning as pl
    from neuralforecast import NeuralForecast
    from neuralforecast.models import PatchTST
    from neuralforecast.utils import AirPassengersDF as table

    from lightning_effnn.recipes.wild._common import Trained

    pl.seed_everything(0, verbose=False)
    train_part, test = table.iloc[:-12], table.iloc[-12:]
    network = PatchTST(
        h=12, input_size=36, hidden_size=16, linear_hidden_size=32, n_heads=4, encoder_layers=2, patch_len=6, stride=3,
        scaler_type="standard", learning_rate=3e-3, max_steps=80, val_check_steps=20, random_seed=0, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False,
        callbacks=list(callbacks),
    )  # fmt: skip
    forecast = NeuralForecast(models=[network], freq="ME")
    forecast.fit(train_part, val_size=12)
    predicted = forecast.predict()
    error = abs(predicted["PatchTST"].to_numpy() - test["y"].to_numpy()).mean()
    fitted = forecast.models[0]
    return Trained(fitted, fitted.trainer, float(error))


if __name__ == "__main__":
    raise SystemExit(main())
