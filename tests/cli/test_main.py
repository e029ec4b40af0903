import subprocess
import sys

import pytest

from lightning_effnn.cli.main import main


def test_alone_it_prints_help(capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    for command in ("ls", "cp", "run", "hw", "profile"):
        assert f"\n    {command} " in shown


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("effnn ")


@pytest.mark.parametrize("arguments", [["sell"], ["ls", "--all"], ["cp", "quickstart"], ["profile"], ["run"]])
def test_wrong_use_is_code_2_with_a_message(capsys, arguments):
    assert main(arguments) == 2
    assert "error:" in capsys.readouterr().err


def test_ls_answers_without_importing_torch():
    code = "import sys, lightning_effnn.cli.main as m; m.main(['ls']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout
