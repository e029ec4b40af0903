"""lightly: BYOL, learning without labels from a copy that follows, ``pytorch_lightning``; scikit-learn's digits.

Needs lightly; ``make wild`` makes an environment for it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from lightning_effnn.recipes.benchmarks._environment import import_torchvision

REQUIREMENTS = ["lightly"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if all that was asked for came out."""
    import_torchvision()
    from lightning_effnn.recipes.wild._common import run

    return run("lightly", version("lightly"), "test accuracy of a linear probe", train, argv)


def train(callbacks: list[Any]) -> Any:
    """Train BYOL as lightly's documentation does, on small images."""
    import numpy as np
    import pytorch_lightning as pl
    import torch
    from lightly.loss import NegativeCosineSimilarity
    from lightly.models import ResNetGenerator
    from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import BYOLTransform, BYOLView1Transform, BYOLView2Transform
    from lightly.utils.scheduler import cosine_schedule
    from PIL import Image
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from torch import nn
    from torch.utils.data import DataLoader, Dataset

    from lightning_effnn.recipes.wild._common import QUIET, Trained

    class BYOL(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            resnet = ResNetGenerator("resnet-9", width=0.125)
            self.backbone = nn.Sequential(*list(resnet.children())[:-1], nn.AdaptiveAvgPool2d(1))
            self.projection_head = BYOLProjectionHead(64, 64, 32)
            self.prediction_head = BYOLPredictionHead(32, 64, 32)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.projection_head_momentum)
            self.criterion = NegativeCosineSimilarity()

        def forward(self, x: Any) -> Any:
            y = self.backbone(x).flatten(start_dim=1)
            return self.prediction_head(self.projection_head(y))

        def forward_momentum(self, x: Any) -> Any:
            y = self.backbone_momentum(x).flatten(start_dim=1)
            return self.projection_head_momentum(y).detach()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            momentum = cosine_schedule(self.current_epoch, 10, 0.996, 1)
            update_momentum(self.backbone, self.backbone_momentum, m=momentum)
            update_momentum(self.projection_head, self.projection_head_momentum, m=momentum)
            x0, x1 = batch[0]
            p0, z0 = self(x0), self.forward_momentum(x0)
            p1, z1 = self(x1), self.forward_momentum(x1)
            loss = 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))
            self.log("train_loss_ssl", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.06)

    class Views(Dataset[Any]):
        def __init__(self, images: Any, transform: Any) -> None:
            self.images, self.transform = images, transform

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, i: int) -> Any:
            return self.transform(self.images[i]), i

    pl.seed_everything(0, verbose=False)
    pixels, labels = load_digits(return_X_y=True)
    levels = (pixels.reshape(-1, 8, 8) * 15).astype(np.uint8).repeat(2, 1).repeat(2, 2)
    images = [Image.fromarray(image).convert("RGB") for image in levels]
    cut, learned = 1300, 640
    options: Any = {"input_size": 16, "min_scale": 0.5, "hf_prob": 0.0, "gaussian_blur": 0.0}
    transform = BYOLTransform(
        view_1_transform=BYOLView1Transform(**options), view_2_transform=BYOLView2Transform(**options)
    )
    loader = DataLoader(Views(images[:learned], transform), batch_size=64, shuffle=True, drop_last=True)
    model = BYOL()
    trainer = pl.Trainer(max_epochs=10, devices=1, callbacks=callbacks, **QUIET)
    trainer.fit(model, loader)
    x = torch.from_numpy(levels / 255).float()[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        features = model.backbone.eval()(x).flatten(1).numpy()
    probe = LogisticRegression(max_iter=1000).fit(features[:cut], labels[:cut])
    return Trained(model, trainer, float(probe.score(features[cut:], labels[cut:])))


if __name__ == "__main__":
    raise SystemExit(main())
