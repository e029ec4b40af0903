import copy

import pytest
import yaml

from lightning_effnn.hardware import Accelerator, estimate_layers, presets
from lightning_effnn.hardware.accelerator import PRESETS, Zeros

ROW = {"name": "l", "kind": "conv", "K": 32, "C": 16, "OY": 8, "OX": 8, "FY": 3, "FX": 3}


@pytest.fixture
def chip_file(tmp_path):
    """Writes tpu_like, changed by a function, to a file."""

    def write(change):
        data = copy.deepcopy(yaml.safe_load((PRESETS / "tpu_like.yaml").read_text()))
        change(data)
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return path

    return write


@pytest.mark.parametrize("name", [p for p in presets() if p != "shumailov2021"])
def test_every_preset_prices_a_layer(name):
    report = estimate_layers([ROW], name)
    assert report.energy_uJ > 0
    assert report.latency_us > 0
    assert set(Accelerator.from_preset(name).summary()) >= {"name", "array", "memories", "source"}


def test_every_preset_cites_where_its_numbers_come_from():
    for path in PRESETS.glob("*.yaml"):
        head = path.read_text().split("name:")[0]
        assert any(word in head for word in ("zigzag-dse", "Horowitz", "arXiv")), path.name


def test_an_unknown_preset_lists_the_presets_and_the_nearest():
    with pytest.raises(ValueError, match=r"presets are .*tpu_like.*Did you mean 'eyeriss_like'"):
        Accelerator.load("eyeris_like")


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        Accelerator.load("nowhere.yaml")


def test_a_copy_of_a_preset_costs_the_same(chip_file):
    path = chip_file(lambda data: None)
    assert estimate_layers([ROW], path).energy_uJ == estimate_layers([ROW], "tpu_like").energy_uJ


def _set(*keys, value):
    def change(data):
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def _drop(*keys):
    def change(data):
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


def _rename(old, new, *keys):
    def change(data):
        for key in keys:
            data = data[key]
        data[new] = data.pop(old)

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_drop("clock_MHz"), ["clock_MHz", "missing"]),
        (_rename("size_bits", "size_bit", "memories", "dram"), ["memories.dram.size_bit", "size_bits"]),
        (_rename("array", "aray"), ["aray", "Did you mean 'array'"]),
        (_set("memories", "rf_2B", "size_bits", value=-16), ["memories.rf_2B.size_bits", "-16", "positive"]),
        (_set("array", "D1", value=0), ["array.D1", "0", "positive"]),
        (_set("memories", "rf_2B", "operands", value=[]), ["memories.rf_2B.operands", "no operand"]),
        (_set("memories", "rf_2B", "operands", value=["X"]), ["memories.rf_2B.operands", "'X'", "I, W, O"]),
        (_set("memories", "dram", "read_pJ", value="many"), ["memories.dram.read_pJ", "'many'", "number"]),
        (_set("memories", "rf_2B", "served_dims", value=["D9"]), ["served_dims", "D9", "D1, D2"]),
        (_set("memories", "rf_2B", "ports", value=[]), ["memories.rf_2B.ports", "O from_high"]),
        (_set("spatial", "conv", "D1", value="Q"), ["spatial.conv.D1", "'Q'", "OX"]),
        (_set("zeros", value={"weights": {"compute": "sometimes"}}), ["zeros.weights.compute", "gating"]),
        (_set("zeros", value={"weights": {"stored_in": ["attic"]}}), ["stored_in", "attic", "dram"]),
        (_set("operations", value={"int8_mac_pJ": 0}), ["operations.int8_mac_pJ", "0", "more than 0"]),
        (_set("memories", value=[1]), ["memories", "mapping"]),
        (_set("model", value="magic"), ["model", "magic", "mapped"]),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_naming_file_key_and_value(chip_file, change, words):
    path = chip_file(change)
    with pytest.raises(ValueError, match="mine.yaml") as caught:
        Accelerator.from_yaml(path)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2", "just text", "", "- a\n- b"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="bad.yaml"):
        Accelerator.from_yaml(path)


def test_yaml_is_never_executed(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("!!python/object/apply:os.system ['touch " + str(tmp_path / "owned") + "']")
    with pytest.raises(ValueError, match="evil.yaml"):
        Accelerator.from_yaml(path)
    assert not (tmp_path / "owned").exists()


def run_length_entries(sequence, run_bits):
    """How many pairs of a run of zeros and an element a coder writes: the longest run has 2**run_bits - 1."""
    entries = run = 0
    for element in sequence:
        if element or run == 2**run_bits - 1:
            entries, run = entries + 1, 0
        else:
            run += 1
    return entries


@pytest.mark.parametrize("run_bits", [2, 5])
def test_run_lengths_take_the_bits_of_sequences_that_are_coded(run_bits):
    zeros, longest = Zeros(storage="run_length", run_bits=run_bits), 2**run_bits
    for block in ([0] * longest, [0] * longest + [7], [0] * 3 * longest + [7]):
        sequence = block * 6
        density = sum(map(bool, sequence)) / len(sequence)
        coded = run_length_entries(sequence, run_bits) * (8 + run_bits)
        assert len(sequence) * zeros.stored_bits(8, density) == pytest.approx(coded)


def test_compressed_storage_never_takes_more_than_dense():
    for zeros in (Zeros(storage="bitmap"), Zeros(storage="run_length", run_bits=5)):
        for density in (0.0, 0.1, 0.5, 0.9, 1.0):
            assert zeros.stored_bits(8, density) <= 8
    assert Zeros(storage="bitmap").stored_bits(8, 0.0) == 1
