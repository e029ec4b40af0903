"""The story of sponge/digits, told in a few seconds."""

import json

from lightning_effnn.cli.main import main


def test_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "sponge/digits", "--epochs", "2", "--inputs", "3", "--steps", "3"]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "runs/sponge_digits/results.json").read_text())
    assert [row["defence"] for row in rows] == ["none", "penalty", "sponge training"]
    for row in rows:
        assert row["gain"] * row["natural_uJ"] == row["worst_uJ"] == max(row["attacks_uJ"].values())
        assert set(row["attacks_uJ"]) == {
            f"{attack}, {bound}" for attack in ("random", "lbfgs", "pgd", "genetic") for bound in ("eps", "free")
        }
    assert (tmp_path / "runs/sponge_digits/energy.png").read_bytes().startswith(b"\x89PNG")
    assert main(arguments) == 0  # nothing is run again
    assert capsys.readouterr().out.count("seed 0") == 3
