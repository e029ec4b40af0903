import pytest

from lightning_effnn.search.plots import plot_choices

HISTORY = [{"chosen": {"a": option, "b": 1}, "probability": {"a": 0.5, "b": 1.0}} for option in "xxyyy"]


def test_the_figure_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    plot_choices(HISTORY, {"a": ("x", "y"), "b": (1,)}, tmp_path / "deep" / "choices.png")
    assert (tmp_path / "deep" / "choices.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("history", "options"), [([], {"a": ("x", "y")}), (HISTORY, {"b": (1,)})])
def test_nothing_to_draw_is_said(tmp_path, history, options):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_choices(history, options, tmp_path / "choices.png")
