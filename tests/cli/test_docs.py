"""What the READMEs tell one to type, and the files that they name, exist."""

import re
from pathlib import Path

import pytest

from lightning_effnn.cli.main import build_parser
from lightning_effnn.cli.recipes import find_recipes

ROOT = Path(__file__).parents[2]
FOLDERS = ("lightning_effnn", "callbacks", "recipes", "tests")
READMES = [p for p in [ROOT / "README.md", *(r for f in FOLDERS for r in (ROOT / f).rglob("README.md"))] if p.exists()]
COMMAND = re.compile(r"(?:^|`|\$ )effnn((?: +[^\s`#]+)*)", re.MULTILINE)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
OWN = {"my.yaml"}  # files of the reader's own in the examples


def name(readme):
    return str(readme.relative_to(ROOT))


def commands(text):
    """The words after `effnn` at the start of a line, after a prompt, or in a code span."""
    return [match[1].split() for match in COMMAND.finditer(text) if match[1].split()]


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_effnn_commands_parse_and_their_recipes_exist(readme):
    recipes = find_recipes()
    for words in commands(readme.read_text(encoding="utf-8")):
        if words[0].isupper() or words[-1] in ("[...]", "..."):
            continue
        if words[0] in ("ls", "cp", "run", "hw", "profile") and len(words) == 1:
            continue  # the command itself is spoken of
        options = build_parser().parse_args([word.strip("[]") for word in words])
        for attribute in ("recipe", "name"):
            recipe = getattr(options, attribute, None)
            assert recipe is None or recipe in recipes or recipe in OWN, f"effnn {' '.join(words)}"


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_make_targets_exist(readme):
    for target in re.findall(r"(?:^|`|\$ )make ([a-z-]+)", readme.read_text(encoding="utf-8"), re.MULTILINE):
        assert target in TARGETS, f"make {target}"


@pytest.mark.parametrize("readme", READMES, ids=name)
def test_paths_exist(readme):
    text = readme.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    for link in links:
        assert (readme.parent / link).exists(), f"link to {link}"
    spans = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./-]*)`", text)
    for span in spans:
        assert (ROOT / span).exists() or (readme.parent / span).exists(), f"path {span}"


def test_a_command_is_read_from_blocks_and_spans():
    text = "```\n$ effnn ls   # all\neffnn run quickstart --x 3\n```\nor `effnn hw` and effnn in prose"
    assert commands(text) == [["ls"], ["run", "quickstart", "--x", "3"], ["hw"]]
