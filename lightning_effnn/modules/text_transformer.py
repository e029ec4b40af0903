"""A small transformer encoder that classifies sentences of token ids."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TextTransformer(nn.Module):
    """Embedding, learned positions, a transformer encoder, the mean over the words, a linear layer.

    Token id 0 is padding: nothing attends to it and the mean leaves it out.

    Args:
        vocab_size: number of token ids, padding included.
        num_classes: length of the output.
        hidden_channels: length of a word's vector; the feed-forward layers have twice as many units.
        num_layers: encoder layers.
        num_heads: attention heads; they share ``hidden_channels`` evenly.
        dropout: share of activations dropped in training: embeddings, attention, feed-forward, pooled vector.
        max_length: most tokens of a sentence.

    Raises:
        ValueError: a size below 1, or heads that do not divide ``hidden_channels``; in ``forward``, a sentence that is
            too long or a token id outside the vocabulary.

    Source: Vaswani et al. (2017), "Attention Is All You Need", section 3.

    >>> net = TextTransformer(vocab_size=100).eval()
    >>> tokens = torch.tensor([[5, 7, 9], [4, 2, 0]])
    >>> net(tokens).shape
    torch.Size([2, 2])
    """

    def __init__(
        self,
        vocab_size: int = 7206,
        num_classes: int = 2,
        hidden_channels: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        dropout: float = 0.1,
        max_length: int = 64,
    ) -> None:
        super().__init__()
        for name, value in (
            ("vocab_size", vocab_size),
            ("num_classes", num_classes),
            ("hidden_channels", hidden_channels),
            ("num_layers", num_layers),
            ("num_heads", num_heads),
            ("max_length", max_length),
        ):
            if value < 1:
                raise ValueError(f"{name} is {value}: use a whole number of at least 1")
        if hidden_channels % num_heads:
            raise ValueError(f"num_heads is {num_heads}: use a number that divides hidden_channels={hidden_channels}")
        self.embedding = nn.Embedding(vocab_size, hidden_channels, padding_idx=0)
        self.position = nn.Embedding(max_length, hidden_channels)
        layer = nn.TransformerEncoderLayer(
            hidden_channels, num_heads, 2 * hidden_channels, dropout=dropout, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_channels, num_classes)
        # As large as the other layers' weights, so that one threshold can prune all of them.
        for table in (self.embedding, self.position):
            nn.init.normal_(table.weight, std=hidden_channels**-0.5)
        with torch.no_grad():
            self.embedding.weight[0] = 0
        self.example_input_array = torch.arange(1, max_length + 1, device="cpu").remainder(vocab_size)[None]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return class scores ``[B, num_classes]`` of token ids ``[B, T]``, each row with a token that is not 0."""
        length, longest = tokens.shape[1], self.position.num_embeddings
        if length > longest:
            raise ValueError(f"a sentence has {length} tokens, max_length is {longest}")
        padding = tokens == 0
        hidden = self._embed(tokens) + self.position.weight[:length]
        hidden = self.encoder(self.dropout(hidden), src_key_padding_mask=padding)
        words = (~padding).unsqueeze(2).to(hidden.dtype)
        scores: Tensor = self.classifier(self.dropout((hidden * words).sum(1) / words.sum(1)))
        return scores

    def _embed(self, tokens: Tensor) -> Tensor:
        try:
            vectors: Tensor = self.embedding(tokens)
        except IndexError as error:
            size = self.embedding.num_embeddings
            raise ValueError(
                f"token ids reach {int(tokens.max())}: with vocab_size={size} they end at {size - 1}"
            ) from error
        return vectors
