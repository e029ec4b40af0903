import pytest
import torch

from lightning_effnn import hardware
from lightning_effnn.compression import focus_model_, load_compressed, prune_model_, save_compressed
from lightning_effnn.modules import ImageClassifier, TextTransformer

SMALL = {"vocab_size": 30, "hidden_channels": 16, "max_length": 12}


def small(**options):
    torch.manual_seed(0)
    return TextTransformer(**{**SMALL, **options}).eval()


def test_scores_have_one_column_a_class():
    assert small(num_classes=5)(torch.randint(1, 30, (3, 7))).shape == (3, 5)


@pytest.mark.parametrize("fast_path", [True, False])
def test_padding_changes_nothing(fast_path):
    net = small()
    tokens = torch.tensor([[5, 7, 9], [4, 2, 0]])
    padded = torch.nn.functional.pad(tokens, (0, 6))
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(fast_path)
    try:
        with torch.no_grad():
            torch.testing.assert_close(net(padded), net(tokens))
            torch.testing.assert_close(net(tokens)[1:], net(tokens[1:, :2]))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_the_order_of_words_matters():
    net = small()
    assert not torch.allclose(net(torch.tensor([[5, 7, 9]])), net(torch.tensor([[9, 7, 5]])))


def test_padding_gets_no_gradient():
    net = small(dropout=0.0).train()
    net(torch.tensor([[5, 7, 0, 0]])).sum().backward()
    moved = net.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert moved == [5, 7]
    assert net.embedding.weight[0].abs().sum() == 0


@pytest.mark.parametrize(
    "name", ["vocab_size", "num_classes", "hidden_channels", "num_layers", "num_heads", "max_length"]
)
def test_a_size_below_one_is_named(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        TextTransformer(**{**SMALL, name: 0})


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="num_heads is 3: .*hidden_channels=16"):
        TextTransformer(**SMALL, num_heads=3)


def test_a_sentence_too_long_and_an_unknown_id_are_named():
    net = small()
    with pytest.raises(ValueError, match="13 tokens, max_length is 12"):
        net(torch.ones(1, 13, dtype=torch.int64))
    with pytest.raises(ValueError, match="reach 30: .*end at 29"):
        net(torch.tensor([[1, 30]]))


def test_a_classifier_takes_its_example_of_token_ids():
    model = ImageClassifier(small(), num_classes=2).eval()
    assert model.example_input_array.dtype == torch.int64
    assert model(model.example_input_array).shape == (1, 2)


def test_all_of_its_work_is_priced():
    net = small()
    report = hardware.estimate(hardware.trace(net, net.example_input_array), "eyeriss_like")
    assert report.coverage == 1
    assert report.macs > 0


def test_attention_is_compressed_too_and_comes_back_equal(tmp_path):
    net = small(vocab_size=200)
    pruned = prune_model_(net, sparsity=0.5)
    assert any("in_proj_weight" in name for name in pruned.zeros)
    assert pruned.layer_sparsity("embedding.weight") > 0.2  # its weights are of the size of the others
    focus_model_(net, bits=5)
    save_compressed(net, tmp_path / "net.effnn")
    tokens = torch.randint(1, 200, (4, 9))
    assert torch.equal(load_compressed(tmp_path / "net.effnn", small(vocab_size=200))(tokens), net(tokens))
