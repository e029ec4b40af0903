import pytest
import yaml

from lightning_effnn.cli._errors import UsageError
from lightning_effnn.cli.main import main
from lightning_effnn.cli.recipes import find_recipes, get_recipe


def test_the_registry_is_the_folder(tmp_path):
    (tmp_path / "search").mkdir()
    (tmp_path / "benchmarks" / "_private").mkdir(parents=True)
    files = {
        "first.yaml": "# Do the first thing.\n#\n# More.\nmodel: 1\n",
        "search/second.yaml": "model: 2\n",
        "_hidden.yaml": "# No.\n",
        "benchmarks/speed.py": '"""Measure speed.\n\nIn detail.\n"""\n',
        "benchmarks/_tools.py": '"""Not a recipe."""\n',
        "benchmarks/_private/x.yaml": "# No.\n",
        "search/compare.py": '"""Compare several."""\n',
        "search/__init__.py": '"""Not a recipe."""\n',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    summaries = {name: recipe.summary for name, recipe in find_recipes(tmp_path).items()}
    assert summaries == {
        "first": "Do the first thing.",
        "search/second": "",
        "search/compare": "Compare several.",
        "benchmarks/speed": "Measure speed.",
    }


def test_every_recipe_says_what_it_does_in_one_sentence():
    for recipe in find_recipes().values():
        assert len(recipe.summary) > 20, recipe.name


def test_ls_shows_name_and_summary(capsys):
    assert main(["ls"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("quickstart"))
    assert "digits" in line


def test_cp_copies_and_says_how_to_run_it(tmp_path, capsys):
    target = tmp_path / "new" / "my.yaml"
    assert main(["cp", "quickstart", str(target)]) == 0
    assert target.read_bytes() == get_recipe("quickstart").path.read_bytes()
    assert f"effnn run {target}" in capsys.readouterr().out
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(("destination", "lands"), [(".", "quickstart.yaml"), ("my", "my.yaml"), ("a.yml", "a.yml")])
def test_cp_names_the_file_as_one_would_expect(tmp_path, monkeypatch, destination, lands):
    monkeypatch.chdir(tmp_path)
    assert main(["cp", "quickstart", destination]) == 0
    assert (tmp_path / lands).is_file()


def test_cp_leaves_an_existing_file_alone_unless_forced(tmp_path, capsys):
    target = tmp_path / "my.yaml"
    target.write_text("mine")
    assert main(["cp", "quickstart", str(target)]) == 2
    assert "--force" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert main(["cp", "quickstart", str(target), "--force"]) == 0
    assert "model" in yaml.safe_load(target.read_text())


def test_cp_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, capsys):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full_disk)
    assert main(["cp", "quickstart", str(tmp_path / "my.yaml")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_cp_of_another_kind_of_file_is_refused(tmp_path, capsys):
    assert main(["cp", "quickstart", str(tmp_path / "my.py")]) == 2
    assert ".yaml" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["cp", "quikstart", "x.yaml"], ["run", "quikstart"]])
def test_unknown_recipe_lists_recipes_and_the_nearest(command, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "did you mean 'quickstart'?" in error
    assert "benchmarks/" in error


def test_missing_file_is_named():
    with pytest.raises(UsageError, match=r"no/such\.yaml"):
        get_recipe("no/such.yaml")
