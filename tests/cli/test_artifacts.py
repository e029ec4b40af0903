import pytest
import torch
from safetensors.torch import load_file

from lightning_effnn.cli.main import main
from lightning_effnn.compression.artifact import load_compressed, save_compressed
from lightning_effnn.formats import PowerOfTwo


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    number_format = PowerOfTwo(4, max_exponent=-1)
    weight = number_format.quantize(torch.randn(30, 40) * 0.2)
    state = {"fc.weight": weight, "fc.bias": torch.randn(30), "tied": weight, "steps": torch.tensor(7)}
    path = tmp_path / "model.effnn"
    save_compressed(state, path, formats={"fc.weight": number_format}, metadata={"note": "[third] try"})
    return path


def test_inspect_shows_layers_formats_bytes_and_metadata(file, capsys):
    assert main(["inspect", str(file)]) == 0
    shown = capsys.readouterr().out
    for text in ("fc.weight", "30x40", "pow2_4", "= fc.weight", "scalar", "times smaller", "note: [third] try"):
        assert text in shown
    assert f"{file.stat().st_size:,}" in shown


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_inspect_draws_the_levels(file, suffix, tmp_path):
    pytest.importorskip("matplotlib")
    figure = tmp_path / "plots" / f"levels.{suffix}"
    assert main(["inspect", str(file), "--plot", str(figure)]) == 0
    assert figure.stat().st_size > 1000
    assert [p.name for p in figure.parent.iterdir()] == [figure.name]


def test_nothing_to_draw_is_said(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    save_compressed({"bias": torch.randn(4)}, tmp_path / "x.effnn")
    assert main(["inspect", str(tmp_path / "x.effnn"), "--plot", str(tmp_path / "x.png")]) == 2
    assert "to draw" in capsys.readouterr().err


def test_decompress_writes_the_state_dict_as_safetensors(file, tmp_path, capsys):
    target = tmp_path / "out" / "model.safetensors"
    assert main(["decompress", str(file), "-o", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    back, state = load_file(target), load_compressed(file)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], x) and back[name].dtype == x.dtype for name, x in state.items())
    assert [p.name for p in target.parent.iterdir()] == [target.name]


def test_decompress_overwrites_only_by_force(file, tmp_path, capsys):
    target = tmp_path / "model.safetensors"
    target.write_text("mine")
    assert main(["decompress", str(file), "-o", str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["decompress", str(file), "-o", str(target), "--force"]) == 0
    assert len(load_file(target)) == 4


@pytest.mark.parametrize("command", [["inspect"], ["decompress", "-o", "out.safetensors"]])
@pytest.mark.parametrize(
    ("content", "said"), [(None, "No such file"), (b"PK\3\4", "not a compressed"), ("cut", "truncated")]
)
def test_a_file_that_cannot_be_used_is_one_message(command, content, said, file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.effnn"
    if content is not None:
        path.write_bytes(file.read_bytes()[:-30] if content == "cut" else content)
    assert main([*command, str(path)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "bad.effnn" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()
