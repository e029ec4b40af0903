import copy
import dataclasses

import pytest
import yaml

from lightning_effnn.hardware import Accelerator, estimate_layers, presets
from lightning_effnn.hardware.accelerator import PRESETS, Zeros
from lightning_effnn.hardware.energy import OperationEnergies

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
