import copy
import dataclasses
import pickle

import pytest
import torch
import yaml

from lightning_effnn.hardware import Accelerator, estimate_layers, presets
from lightning_effnn.hardware.accelerator import PRESETS, Zeros
from lightning_effnn.hardware.energy import OperationEnergies

ROW = {"name": "l", "kind": "conv", "K": 32, "C": 16, "OY": 8, "OX": 8, "FY": 3, "FX": 3}
DRAM_PORT = ("memories", "dram", "ports", 0)


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


def test_a_file_that_was_edited_is_read_anew(chip_file):
    cheap = estimate_layers([ROW], chip_file(lambda data: None)).energy_uJ
    dear = estimate_layers([ROW], chip_file(_set("memories", "dram", "read_pJ", value=900))).energy_uJ  # as long a text
    assert dear > cheap


def test_a_chip_that_is_changed_in_memory_changes_no_other_and_is_mapped_anew():
    preset = estimate_layers([ROW], "tpu_like").rows()
    mine = Accelerator.from_preset("tpu_like")
    estimate_layers([ROW], mine)
    mine.array["D1"] = 8
    mine.spatial["conv"]["D2"] = "OX"
    assert estimate_layers([ROW], mine).rows() != preset
    assert estimate_layers([ROW], "tpu_like").rows() == preset


@pytest.mark.parametrize("part", ["memories", "systolic_dims", "array", "spatial", "zeros", "energies", "clock_MHz"])
def test_chips_that_share_a_name_keep_their_costs_apart(part):
    chip = dataclasses.replace(Accelerator.from_preset("eyeriss_like"), name="chip")
    row = {**ROW, "i_density": 0.5}
    changed = {
        "memories": (*chip.memories[:-1], dataclasses.replace(chip.memories[-1], read_pJ=1.0)),
        "systolic_dims": ("D1",),
        "array": {"D1": 7, "D2": 12},
        "spatial": {kind: {"D1": "OX", "D2": "C"} for kind in chip.spatial},
        "zeros": {"weights": Zeros(), "activations": Zeros()},
        "energies": OperationEnergies.of({"int8_mac_pJ": 5.0}),
        "clock_MHz": 100.0,
    }
    other = dataclasses.replace(chip, **{part: changed[part]})
    first, second = (estimate_layers([row], c) for c in (chip, other))
    assert (first.energy_uJ, first.latency_us) != (second.energy_uJ, second.latency_us)
    assert estimate_layers([row], chip).rows() == first.rows()


def _move_last(data):
    data["memories"] = {"dram": data["memories"].pop("dram"), **data["memories"]}


def _serve_less(data):
    data["memories"]["rf_2B"]["served_dims"] = ["D2"]
    data["memories"]["sram_2MB"]["served_dims"] = ["D1"]


def _share(data):
    for port in data["memories"]["sram_2MB"]["ports"]:
        port["kind"] = "read"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_move_last, ["memories.sram_2MB.operands", "innermost to the outermost"]),
        (_set("memories", "sram_2MB", "size_bits", value=8), ["memories.sram_2MB.size_bits", "at least 16", "'rf_2B'"]),
        (_serve_less, ["memories.sram_2MB.served_dims", "('D1',)", "'rf_2B'"]),
        (_set("memories", "dram", "served_dims", value=["D1"]), ["memories.dram.served_dims", "D1, D2"]),
        (_rename("rf_2B", "MAC", "memories"), ["memories", "MAC", "other names"]),
        (_rename("rf_2B", " ", "memories"), ["memories", "' '", "a name in one line"]),
        (_rename("rf_2B", 7, "memories"), ["memories", "7", "a name in one line"]),
        (_set("memories", "rf_2B", "name", value="other"), ["memories.rf_2B.name", "other", "no such key"]),
        (_share, ["memories.sram_2MB.ports[1].serves", "I from_high", "'read'"]),
        (_set(*DRAM_PORT, "serves", 1, value="I from_high"), ["memories.dram.ports", "each but once"]),
        (_set(*DRAM_PORT, "serves", 1, value="I to_high"), ["I to_high", "only results"]),
        (_set(*DRAM_PORT, "min_bits_per_cycle", value=128), ["min_bits_per_cycle", "128", "at most"]),
        (_rename("max_bits_per_cycle", "max_bits", *DRAM_PORT), ["ports[0].max_bits", "Did you mean"]),
        (_rename("conv", "con", "spatial"), ["spatial.con", "Did you mean 'conv'"]),
        (_set("spatial", "conv", value={"D1": "K"}), ["spatial.conv", "D1, D2"]),
        (_set("systolic_dims", value=["D3"]), ["systolic_dims", "D3", "D1, D2"]),
        (_set("zeros", value={"weight": {}}), ["zeros.weight", "Did you mean 'weights'"]),
        (_set("zeros", value={"weights": {"storage": "bitmap"}}), ["zeros.weights.stored_in", "bitmap"]),
        (_set("zeros", value={"weights": {"storage": "run_length", "stored_in": ["dram"]}}), ["weights.run_bits", "0"]),
        (_set("model", value="systolic"), ["dataflow", "ws, os or is"]),
        (_set("dataflow", value="ws"), ["dataflow", "'systolic'"]),
        (_set("access_pJ", value=1950), ["access_pJ", "1950", "shumailov2021"]),
        (_set("model", value="shumailov2021"), ["access_pJ", "energy of a scalar"]),
        (_set("name", value=3), ["name", "3", "text"]),
    ],
)  # fmt: skip
def test_a_file_whose_parts_do_not_fit_together_is_refused(chip_file, change, words):
    with pytest.raises(ValueError, match="mine.yaml") as caught:
        Accelerator.from_yaml(chip_file(change))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        ("array", "D1"), ("clock_MHz",), ("vector_lanes",), ("partial_sum_bits",), ("operations", "int8_mac_pJ"),
        ("memories", "dram", "size_bits"), ("memories", "dram", "read_pJ"), ("memories", "rf_2B", "write_pJ"),
        ("memories", "dram", "ports", 0, "max_bits_per_cycle"), ("zeros", "weights", "run_bits"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [float("nan"), "-.inf", 10**20, -1, True, None])
def test_a_number_that_is_none_or_beyond_bounds_is_refused(chip_file, keys, value):
    with pytest.raises(ValueError, match="mine.yaml") as caught:
        Accelerator.from_yaml(chip_file(_set(*keys, value=value)))
    assert str(keys[-1]) in str(caught.value)
    assert "accepted: " in str(caught.value)


def test_whole_numbers_may_be_written_with_an_exponent(chip_file):
    plain = chip_file(_set("memories", "sram_2MB", "size_bits", value=8400000))
    expected = Accelerator.from_yaml(plain)
    for written in ("8.4e6", "84e5", "8400000.0"):
        text = plain.read_text().replace("8400000", written)
        plain.with_name("other.yaml").write_text(text)
        assert Accelerator.from_yaml(plain.with_name("other.yaml")) == expected


def test_a_long_run_counter_is_refused_before_it_costs_memory(chip_file):
    zeros = {"weights": {"storage": "run_length", "run_bits": 10**9, "stored_in": ["dram"]}}
    with pytest.raises(ValueError, match=r"weights.run_bits.*1000000000.*at most 64"):
        Accelerator.from_yaml(chip_file(_set("zeros", value=zeros)))
    widest = Zeros(storage="run_length", run_bits=64, stored_in=("dram",))
    assert float(widest.stored_bits(8, torch.tensor(0.01))) == pytest.approx(0.72)


def test_a_memory_written_twice_is_refused(chip_file):
    path = chip_file(lambda data: None)
    path.write_text(path.read_text().replace("rf_128B:", "rf_2B:"))
    with pytest.raises(ValueError, match=r"mine.yaml.*'rf_2B' stands twice"):
        Accelerator.from_yaml(path)


def test_a_chip_built_in_python_is_checked_as_well():
    chip = Accelerator.from_preset("tpu_like")
    dram = chip.memories[-1]
    for wrong, words in (
        ({"memories": chip.memories[::-1]}, "innermost to the outermost"),
        ({"memories": (dataclasses.replace(dram, name="x"), *chip.memories)}, "innermost to the outermost"),
        ({"memories": (*chip.memories[:-1], chip.memories[0], dram)}, "each but once"),
        ({"clock_MHz": float("nan")}, "clock_MHz"),
        ({"array": {"D1": 0, "D2": 32}}, "positive integer"),
        ({"model": "systolic"}, "dataflow"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(chip, **wrong)
    with pytest.raises(ValueError, match="size_bits"):
        dataclasses.replace(dram, size_bits=float("inf"))


def test_a_chip_survives_copies_and_pickles():
    for name in presets():
        chip = Accelerator.from_preset(name)
        assert pickle.loads(pickle.dumps(chip)) == copy.deepcopy(chip) == chip
        assert len(repr(chip)) < 300


def test_a_memory_without_room_for_a_layer_is_named(chip_file):
    def shrink(data):
        data["memories"]["sram_2MB"]["size_bits"] = 64  # 32 columns of the array need 256 bits of sums

    with pytest.raises(ValueError, match=r"'K': 32.*'sram_2MB'.*size_bits"):
        estimate_layers([ROW], chip_file(shrink))


def test_what_is_no_chip_is_refused():
    for wrong in (None, 3, ["tpu_like"]):
        with pytest.raises(TypeError, match="a preset's name"):
            Accelerator.load(wrong)
