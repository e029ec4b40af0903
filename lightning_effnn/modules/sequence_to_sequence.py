"""A small encoder-decoder that reads a sequence of tokens and writes another one, token by token."""

from __future__ import annotations

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F


class Encoder(nn.Module):
    """A vector for each token, of what is before and after it.

    Args:
        tokens: number of ids.
        hidden_channels: length of the vectors.
    """

    def __init__(self, tokens: int, hidden_channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, hidden_channels)
        self.rnn = nn.GRU(hidden_channels, hidden_channels, batch_first=True, bidirectional=True)
        self.merge = nn.Linear(2 * hidden_channels, hidden_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[B, T, hidden_channels]`` of ids ``[B, T]``."""
        memory: Tensor = self.merge(self.rnn(self.embedding(tokens))[0])
        return memory


class Decoder(nn.Module):
    """What comes after the tokens so far, by a recurrent state and where it looks in the memory.

    Args:
        tokens: number of ids.
        hidden_channels: length of the state, as of the memory's vectors.
    """

    def __init__(self, tokens: int, hidden_channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, hidden_channels)
        self.first = nn.Linear(hidden_channels, hidden_channels)
        self.rnn = nn.GRU(hidden_channels, hidden_channels, batch_first=True)
        self.query = nn.Linear(hidden_channels, hidden_channels, bias=False)
        self.mix = nn.Linear(2 * hidden_channels, hidden_channels)
        self.scores = nn.Linear(hidden_channels, tokens)

    def forward(self, latest: Tensor, memory: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return scores ``[B, S, tokens]`` after each of the ids ``[B, S]``, and the state after the last.

        Args:
            latest: ids ``[B, S]``, one or more of each output.
            memory: ``[B, T, hidden_channels]``.
            state: what was returned for the ids before, None at the beginning.
        """
        if state is None:
            state = torch.tanh(self.first(memory.mean(1))).unsqueeze(0)
        hidden, state = self.rnn(self.embedding(latest), state)
        attention = torch.bmm(self.query(hidden), memory.transpose(1, 2)).softmax(2)
        seen = torch.bmm(attention, memory)
        return self.scores(torch.tanh(self.mix(torch.cat((hidden, seen), 2)))), state


class SequenceToSequence(L.LightningModule):
    """Encoder and decoder, trained to write the tokens of a target; logs ``train/loss``, ``val/loss``, ``val/exact``.

    Token id 0 is padding in inputs and targets; a target begins with id 1 and ends in id 2.

    Args:
        tokens_in: number of ids of inputs.
        tokens_out: number of ids of outputs.
        hidden_channels: length of all vectors.
        lr: learning rate of AdamW at the start; it falls to zero over the fit.
        limit: most tokens of an output.

    Raises:
        ValueError: a size below 1.

    Source: Bahdanau et al. (2015), arXiv 1409.0473, with the attention of Luong et al. (2015), arXiv 1508.04025,
    section 3.1.

    >>> model = SequenceToSequence(tokens_in=14, tokens_out=35, hidden_channels=8)
    >>> model.generate(torch.tensor([[5, 7, 9]]), limit=4).shape[0]
    1
    """

    start, end = 1, 2

    def __init__(
        self, tokens_in: int, tokens_out: int, hidden_channels: int = 128, lr: float = 3e-3, limit: int = 256
    ) -> None:
        super().__init__()
        for name, value in (
            ("tokens_in", tokens_in),
            ("tokens_out", tokens_out),
            ("hidden_channels", hidden_channels),
            ("limit", limit),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}: use a whole number of at least 1")
        self.save_hyperparameters()
        self.encoder = Encoder(tokens_in, hidden_channels)
        self.decoder = Decoder(tokens_out, hidden_channels)
        self.lr, self.limit = lr, limit

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what is written for ids ``[B, T]``: see :meth:`generate`."""
        return self.generate(tokens)

    @torch.no_grad()
    def generate(self, tokens: Tensor, limit: int | None = None) -> Tensor:
        """Write the likeliest token again and again, until all outputs have ended or the limit is reached.

        Args:
            tokens: ids ``[B, T]``.
            limit: most tokens of an output; the model's own if None.

        Returns:
            ``[B, S]``, the end included, 0 behind it; ``S`` is at most the limit.
        """
        memory, state = self.encoder(tokens), None
        latest = torch.full((len(tokens), 1), self.start, device=tokens.device)
        ended = torch.zeros(len(tokens), 1, dtype=torch.bool, device=tokens.device)
        written = []
        for _ in range(self.limit if limit is None else limit):
            scores, state = self.decoder(latest, memory, state)
            latest = scores.argmax(2)
            written.append(latest.masked_fill(ended, 0))
            ended = ended | (latest == self.end)
            if bool(ended.all()):
                break
        return torch.cat(written, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        loss = self._loss(*batch)
        self.log("train/loss", loss, batch_size=len(batch[0]), prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss, and the share of outputs that are right to the last token."""
        tokens, target = batch
        written = self.generate(tokens, target.shape[1])[:, : target.shape[1] - 1]
        written = F.pad(written, (0, target.shape[1] - 1 - written.shape[1]))
        exact = (written == target[:, 1:]).all(1).float().mean()
        self.log_dict({"val/loss": self._loss(tokens, target), "val/exact": exact}, batch_size=len(tokens))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW, with a cosine schedule by step."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def _loss(self, tokens: Tensor, target: Tensor) -> Tensor:
        scores, _ = self.decoder(target[:, :-1], self.encoder(tokens), None)
        return F.cross_entropy(scores.transpose(1, 2), target[:, 1:], ignore_index=0)
