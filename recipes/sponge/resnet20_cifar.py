"""What the worst image costs a ResNet-20 on CIFAR-10: undefended, penalised on natural images, trained against sponges.

    EFFNN_DATA=/path/to/data effnn run sponge/resnet20_cifar
    effnn run sponge/resnet20_cifar --seeds 3 --out runs/sponge_resnet20_cifar/results.json
    effnn run sponge/resnet20_cifar --limit 2000 --epochs 1 --inputs 4 --steps 5    # a quick look

Pretrained weights are fine-tuned for a few epochs, some minutes each on one core with bfloat16 (``--precision 32-true``
without). Each network is attacked on test images within ``--eps`` and without a bound, by noise, L-BFGS, projected
gradients and a genetic algorithm, which no network has met in training; the energy of each input is that of its own
trace. Results are kept in ``--out`` as they come; what is there is not run again. Needs ``cifar10_train_jpeg.npz``,
``cifar10_test_jpeg.npz`` and ``cifar10_resnet20.safetensors``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_effnn.data import CIFAR10DataModule
from lightning_effnn.modules import ImageClassifier, Normalized, ResNetCIFAR
from lightning_effnn.recipes.sponge._comparison import Study, compare


def model() -> ImageClassifier:
    """Return the pretrained network, its normalisation inside; channels last, which is faster."""
    net = Normalized(ResNetCIFAR(weights="cifar10_resnet20.safetensors"), CIFAR10DataModule.mean, CIFAR10DataModule.std)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return ImageClassifier(net, optimizer="sgd", lr=0.02)


STUDY = Study(
    name="sponge/resnet20_cifar",
    data=lambda seed, limit: CIFAR10DataModule(
        seed=seed, limit=limit, val_size=5000 if limit is None else max(1, limit // 10), normalised=False
    ),
    model=model,
    epochs=2,
    weight=2.0,
    eps=8 / 255,
    share=0.25,
    inputs=16,
    precision="bf16-mixed",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, print the table, draw the figure."""
    return compare(STUDY, __doc__ or "", argv)


if __name__ == "__main__":
    raise SystemExit(main())
