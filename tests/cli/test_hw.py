import pytest

from lightning_effnn import hardware
from lightning_effnn.cli.main import main


def test_every_preset_is_a_row_with_its_figures(capsys):
    assert main(["hw"]) == 0
    shown = capsys.readouterr().out
    for name in hardware.presets():
        assert name in shown
    for heading in hardware.Accelerator.load("tpu_like").summary():
        assert heading in shown


def test_only_those_asked_for(capsys):
    assert main(["hw", "tpu_like"]) == 0
    shown = capsys.readouterr().out
    assert "tpu_like" in shown
    assert "horowitz45" not in shown


@pytest.mark.parametrize(("name", "said"), [("tpulike", "tpu_like"), ("my.yaml", "my.yaml")])
def test_what_is_not_there_is_named(capsys, name, said):
    assert main(["hw", name]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_broken_yaml_names_the_file(tmp_path, capsys):
    (tmp_path / "chip.yaml").write_text("name: x\nclok_MHz: 3\n")
    assert main(["hw", str(tmp_path / "chip.yaml")]) == 2
    assert "chip.yaml" in capsys.readouterr().err
