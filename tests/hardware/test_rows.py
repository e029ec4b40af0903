import pytest

from lightning_effnn.hardware import estimate_layers
from lightning_effnn.hardware.rows import operation

CONV = {"name": "l", "kind": "conv", "K": 8, "C": 3, "OY": 4, "OX": 4, "FY": 3, "FX": 3}
SCALESIM = {
    "layer": "s", "ifmap_h": 8, "ifmap_w": 8, "filter_h": 3, "filter_w": 3, "channels": 3, "filters": 8, "stride": 1
}  # fmt: skip


def refusal(row):
    with pytest.raises(ValueError, match="row 0") as caught:
        estimate_layers([row], "tpu_like")
    return str(caught.value)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"Fy": 5}, ["'Fy'", "5", "did you mean 'FY'"]),
        ({"k": 16}, ["'k'", "16", "did you mean 'K'"]),  # beside K: which of the two is meant?
        ({"strides": 2}, ["'strides'", "did you mean 'stride'"]),
        ({"padding": 1}, ["'padding'", "sizes of the output"]),
        ({"wbits": 4}, ["'wbits'", "did you mean 'w_bits'"]),
        ({"dilation": 2}, ["'dilation'", "accepted: name, kind, B"]),
        ({None: ["9", "9"]}, ["None", "['9', '9']"]),  # what csv.DictReader makes of a line that is too long
    ],
)
def test_a_column_without_a_meaning_is_named_with_the_nearest_that_has_one(extra, words):
    message = refusal(CONV | extra)
    assert "row 0 (l)" in message
    for word in words:
        assert word in message


@pytest.mark.parametrize("column", ["M", "N", "Kk"])
def test_a_product_in_other_letters_is_told_which_are_meant(column):
    message = refusal({"name": "fc", "kind": "gemm", "K": 8, column: 8})
    assert repr(column) in message
    assert "B rows" in message


def test_a_column_of_the_other_form_is_refused():
    assert "'kind'" in refusal(SCALESIM | {"kind": "gemm"})
    assert "'K'" in refusal(SCALESIM | {"K": 8})
    assert "'filter_w' is missing" in refusal({k: v for k, v in SCALESIM.items() if k != "filter_w"})


@pytest.mark.parametrize("row", [{}, {"name": "empty"}, {"name": "named", "kind": "gemm", "w_bits": 4}, {"K": ""}])
def test_a_row_that_gives_no_extent_is_refused(row):
    assert "no extent" in refusal(row)


@pytest.mark.parametrize("row", ["K=8", ["K", 8], None])
def test_a_row_that_is_no_mapping_is_refused(row):
    assert "a mapping" in refusal(row)


@pytest.mark.parametrize(
    ("column", "value"),
    [("w_density", float("nan")), ("i_density", "half"), ("o_density", -0.1), ("w_density", True)],
)
def test_a_density_that_is_no_share_is_refused(column, value):
    assert f"{column}={value!r}, a number from 0 to 1" in refusal(CONV | {column: value})


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("K", True), ("K", float("nan")), ("K", "1e400"), ("K", 10**30), ("stride", 0), ("w_bits", 65),
        ("o_partial_bits", 10**9), ("OX", [4]),
    ],
)  # fmt: skip
def test_an_extent_or_width_out_of_range_is_refused_at_once(column, value):
    assert f"{column}={value!r}, a positive integer" in refusal(CONV | {column: value})
    if column in ("stride", "w_bits"):
        assert f"{column}={value!r}" in refusal(SCALESIM | {column: value})


def test_a_depthwise_layer_has_its_channels_in_G():
    window = {"kind": "depthwise", "OY": 4, "OX": 4, "FY": 3, "FX": 3}
    assert operation({**window, "G": 8}, 0).macs == 8 * 16 * 9
    assert "groups" in refusal({**window, "K": 8})
    assert "groups" in refusal({**window, "G": 8, "C": 8})


def test_text_whole_floats_and_blanks_of_a_table_are_read():
    row = {key: f"{value}.0" if isinstance(value, int) else value for key, value in CONV.items()}
    assert operation(row | {"B": "", "o_partial_bits": None, "stride": "1e0"}, 0) == operation(CONV, 0)


def test_both_forms_say_the_same_and_keep_widths_and_densities():
    stored = {"w_bits": 4, "i_bits": 6, "o_bits": 5, "o_partial_bits": 20, "w_density": 0.5, "o_density": 0.25}
    theirs = operation(SCALESIM | stored, 0)
    mine = operation({**CONV, "name": "s", "OY": 6, "OX": 6} | stored, 0)
    assert theirs == mine


def test_results_in_the_simulators_tables_are_no_part_of_a_layer():
    assert operation(CONV | {"accelerator": "eyeriss_like", "energy_pJ": 1.0, "seconds": 2}, 0) == operation(CONV, 0)


def test_rows_without_a_name_are_numbered():
    report = estimate_layers([{"K": 8}, {"K": 8, "name": "mine"}, {"K": 8}], "tpu_like")
    assert [row["name"] for row in report.rows()] == ["layer0", "mine", "layer2"]
