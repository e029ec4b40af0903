"""timm: EfficientNet (depthwise convolutions, squeeze and excitation), ``lightning``; scikit-learn's digits.

Needs timm; ``make wild`` makes an environment for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from lightning_effnn.recipes.benchmarks._environment import import_torchvision

REQUIREMENTS = ["timm>=1"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if all that was asked for came out."""
    import_torchvision()
    from lightning_effnn.recipes.wild._common import run

    return run("timm", version("timm"), "test accuracy", train, argv)


def train(callbacks: list[Any]) -> Any:
    """Train a network of timm's from scratch, on digits four times as large."""
    import lightning as L
    import timm
    import torch
    from sklearn.datasets import load_digits
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    from lightning_effnn.recipes.wild._common import QUIET, Trained

    class Classifier(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = timm.create_model("test_efficientnet", in_chans=1, num_classes=10)

        def forward(self, x: Any) -> Any:
            return self.model(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            right = (self(batch[0]).argmax(1) == batch[1]).float().mean()
            self.log("accuracy", right, batch_size=len(batch[0]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    L.seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 16).float().view(-1, 1, 8, 8)
    images = images.repeat_interleave(4, 2).repeat_interleave(4, 3)
    data, cut = TensorDataset(images, torch.from_numpy(labels)), 1300
    training, validation = (
        DataLoader(torch.utils.data.Subset(data, range(cut)), batch_size=64, shuffle=True, drop_last=True),
        DataLoader(torch.utils.data.Subset(data, range(cut, len(data))), batch_size=100),
    )
    model = Classifier()
    trainer = L.Trainer(max_epochs=8, callbacks=callbacks, **QUIET)
    trainer.fit(model, training, validation)
    (found,) = trainer.validate(model, validation, verbose=False)
    return Trained(model, trainer, float(found["accuracy"]))


if __name__ == "__main__":
    raise SystemExit(main())
