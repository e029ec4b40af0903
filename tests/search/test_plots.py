import pytest

from lightning_effnn.search.plots import choices_figure, plot_choices

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


def drawn(history, options):
    pytest.importorskip("matplotlib")
    figure = choices_figure(history, options)
    axes = figure.axes[0]
    names = sorted((text.get_position()[::-1], text.get_text().strip()) for text in axes.texts)
    return [name for _, name in names], axes.get_xlim()


def told(options, epochs):
    return [{"epoch": e, "chosen": {"a": o}, "probability": {"a": 0.7}} for o, e in zip(options, epochs, strict=True)]


def test_the_option_chosen_in_the_end_is_named_however_late_it_came():
    for late in (1, 2, 5, 20):
        names, _ = drawn(told([2] * (100 - late) + [6] * late, range(100)), {"a": (2, 6)})
        assert names == ["2", "6"]


def test_options_that_were_ahead_for_a_moment_only_have_no_room_for_a_name():
    names, _ = drawn(told([2] * 60 + [4] + [6] * 39, range(100)), {"a": (2, 4, 6)})
    assert names == ["2", "6"]


@pytest.mark.parametrize("epochs", [range(30, 40), range(0, 50, 5)])
def test_the_axis_is_that_of_the_epochs_told(epochs):
    _, limits = drawn(told([2] * 10, epochs), {"a": (2, 6)})
    assert limits == (epochs[0] - 0.5, epochs[-1] + 0.5)


def test_epochs_that_do_not_rise_are_refused():
    with pytest.raises(ValueError, match=r"must rise, got \[3, 3\]"):
        drawn(told([2, 2], [3, 3]), {"a": (2, 6)})
