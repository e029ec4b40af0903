from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_effnn.search.graph import BlockConfig, GraphNetConfig, GraphSpace
from lightning_effnn.search.graph.config import ACTIVATIONS, AGGREGATIONS, ATTENTIONS, SKIPS

bits = st.sampled_from((1, 2, 4, 8, 32))
blocks = st.builds(
    BlockConfig,
    width=st.integers(1, 64),
    attention=st.sampled_from(ATTENTIONS),
    aggregation=st.sampled_from(AGGREGATIONS),
    activation=st.sampled_from(ACTIVATIONS),
    skip=st.sampled_from(SKIPS),
    linear_w=bits,
    linear_a=bits,
    attention_w=bits,
    attention_a=bits,
    aggregation_a=bits,
    activation_a=bits,
)


@settings(max_examples=50)
@given(st.lists(blocks, min_size=1, max_size=3), bits)
def test_yaml_and_back_is_the_same(chosen, input_a):
    config = GraphNetConfig(9, tuple(chosen), input_a=input_a, dropout=0.25)
    assert GraphNetConfig.from_yaml(config.to_yaml()) == config
    assert GraphNetConfig.from_dict(config.to_dict()) == config


def test_a_file_holds_one_line_or_two_a_block_and_nothing_unused(tmp_path):
    path = tmp_path / "deep" / "net.yaml"
    text = GraphNetConfig.gat(1433, 7, w_bits=4, a_bits=8).to_yaml(path)
    assert path.read_text() == text + "\n"
    assert GraphNetConfig.from_yaml(path) == GraphNetConfig.gat(1433, 7, w_bits=4, a_bits=8)
    assert "skip" not in text
    assert "attention_w" not in GraphNetConfig.gcn(1433, 7).to_yaml()


def test_bits_of_what_is_not_there_make_no_difference():
    assert BlockConfig(8, attention="gcn", attention_w=2) == BlockConfig(8, attention="gcn")
    without = BlockConfig(8, attention="none", activation="none", attention_a=2, activation_a=2, aggregation_a=4)
    assert (without.attention_a, without.activation_a, without.out_bits) == (32, 32, 4)


def test_full_precision_keeps_the_parts():
    config = GraphNetConfig.gat(5, 3, w_bits=2, a_bits=4)
    assert config.full_precision() == GraphNetConfig.gat(5, 3)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention": "gatt"}, "attention is 'gatt'.*did you mean 'gat'"),
        ({"aggregation": "median"}, "aggregation"),
        ({"activation": "gelu"}, "activation"),
        ({"skip": True}, "skip"),
        ({"width": 0}, "width"),
        ({"width": 9, "heads": 2}, "multiple of the 2 heads"),
        ({"linear_w": 0}, "linear_w is 0"),
        ({"linear_a": 17}, "linear_a is 17"),
        ({"attention_w": 4.0}, "attention_w is 4.0"),
    ],
)
def test_a_block_that_is_none_is_refused(change, named):
    with pytest.raises(ValueError, match=named):
        replace(BlockConfig(8), **change)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("blocks: [", "is no YAML file"),
        ("3", "no keys"),
        ("in_channels: 4", "needs the key 'blocks'"),
        ("{in_channels: 4, blocks: []}", "blocks is empty"),
        ("{in_channels: 4, blocks: 3}", "list of mappings"),
        ("{in_channels: 4, blocks: [{widht: 3}]}", "did you mean 'width'"),
        ("{in_channels: 4, blocks: [{}]}", "needs the key 'width'"),
        ("{in_channels: 4, droput: 0.1, blocks: [{width: 3}]}", "did you mean 'dropout'"),
        ("{in_channels: 4, dropout: 1.0, blocks: [{width: 3}]}", "dropout is 1.0"),
        ("{in_channels: 0, blocks: [{width: 3}]}", "in_channels is 0"),
        ("{in_channels: 4, norm: men, blocks: [{width: 3}]}", "did you mean 'mean'"),
    ],
)
def test_a_yaml_that_is_no_network_says_what_is_wrong(text, named):
    with pytest.raises(ValueError, match=named):
        GraphNetConfig.from_yaml(text)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"w_bits": (4, 5.5)}, "w_bits is 5.5"),
        ({"a_bits": (4, 24)}, "a_bits is 24"),
        ({"w_bits": ()}, "w_bits is"),
        ({"a_bits": (4, 4)}, "a_bits is"),
        ({"attention": "gat"}, "attention is 'gat': use a list"),
        ({"attention": ("gat", "dot")}, "attention is 'dot'"),
        ({"hidden_channels": (0,)}, "width is 0"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"num_layers": True}, "num_layers is True"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "batch"}, "norm is 'batch': use one of none, mean"),
    ],
)
def test_a_space_with_an_unknown_option_is_refused(options, named):
    with pytest.raises(ValueError, match=named):
        GraphSpace(8, 3, **options)


def test_the_norm_is_in_the_yaml_where_there_is_one():
    config = GraphSpace(8, 3, norm="mean").config(GraphSpace(8, 3).first)
    assert config.norm == GraphNetConfig.from_yaml(config.to_yaml()).norm == "mean"
    assert "norm" not in GraphNetConfig.gcn(8, 3).to_yaml()


def test_a_space_names_choices_as_its_networks_do():
    space = GraphSpace(8, 3, num_layers=3, hidden_channels=[4], w_bits=(2, 4), a_bits=(8,))
    chosen = space.first | {"blocks.1.linear_w": 4, "blocks.2.skip": "linear"}
    config = space.config(chosen)
    assert [block.width for block in config.blocks] == [4, 4, 3]
    assert config.blocks[1].linear_w == 4
    assert config.blocks[2].skip == "linear"
    assert space.options["blocks.0.skip"] == ("none",)
    assert space.options["blocks.2.activation"] == ("none",)
