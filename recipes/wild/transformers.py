"""transformers: a small GPT-2 (layers of its own class, a head tied to the table), ``lightning``; Python's own source.

Needs transformers; ``make wild`` makes an environment for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

REQUIREMENTS = ["transformers>=5"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; 0 if all that was asked for came out."""
    from lightning_effnn.recipes.wild._common import run

    return run("transformers", version("transformers"), "held-out loss a character", train, argv)


def train(callbacks: list[Any]) -> Any:
    """Train GPT-2, made from its configuration, to predict the next character."""
    import inspect
    import textwrap

    import lightning as L
    import torch
    from torch.utils.data import DataLoader, TensorDataset
    from transformers import GPT2Config, GPT2LMHeadModel

    from lightning_effnn.recipes.wild._common import QUIET, Trained

    class GPT2(L.LightningModule):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.model = GPT2LMHeadModel(config)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.model(input_ids=batch[0], labels=batch[0]).loss
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.model(input_ids=batch[0], labels=batch[0]).loss, batch_size=len(batch[0]))

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    L.seed_everything(0, verbose=False)
    text = inspect.getsource(textwrap).encode("ascii", "ignore")
    tokens = torch.tensor(list(text))
    parts = tokens[: len(tokens) // 64 * 64].view(-1, 64)
    held_out = torch.arange(len(parts)) % 8 == 7
    training, validation = (
        DataLoader(TensorDataset(parts[~held_out]), batch_size=16, shuffle=True),
        DataLoader(TensorDataset(parts[held_out]), batch_size=16),
    )
    config = GPT2Config(vocab_size=128, n_positions=64, n_embd=64, n_layer=2, n_head=4)
    model = GPT2(config)
    trainer = L.Trainer(max_epochs=12, callbacks=callbacks, **QUIET)
    trainer.fit(model, training, validation)
    (found,) = trainer.validate(model, validation, verbose=False)
    return Trained(model, trainer, float(found["val_loss"]))


if __name__ == "__main__":
    raise SystemExit(main())
