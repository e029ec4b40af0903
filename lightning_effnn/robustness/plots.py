"""Figure of what attacks cost. Needs matplotlib (extra ``plots``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_effnn.robustness.evaluation import SpongeReport

_MOST_BARS = 30


def sponge_figure(report: SpongeReport) -> Figure:
    """Bars of the mean energy after each attack, and of what each layer spends more in the worst; a ``Figure``.

    Of many layers, those that change most are shown.

    Raises:
        ImportError: matplotlib is not installed; the message names the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install 'lightning_effnn[plots]'") from error
    natural, worst = report.natural, report.worst
    extra = {name: worst.layers.get(name, 0.0) - spent for name, spent in natural.layers.items()}
    shown = sorted(extra, key=lambda name: -abs(extra[name]))[:_MOST_BARS]
    names = [name for name in extra if name in shown]  # in the order of the network
    figure = Figure(figsize=(10, 2 + 0.25 * max(len(names), 6)), layout="constrained")
    totals, layers = figure.subplots(1, 2, width_ratios=(1, 2))
    outcomes = (natural, *report.attacks)
    colors = ["black", *("tab:red" if outcome is worst else "tab:blue" for outcome in report.attacks)]
    totals.bar([outcome.name for outcome in outcomes], [outcome.mean_uJ for outcome in outcomes], color=colors)
    least = min(outcome.mean_uJ for outcome in outcomes)
    totals.set_ylim(bottom=0.8 * least)
    totals.tick_params(axis="x", rotation=45)
    totals.set_ylabel(f"mean energy of an input (uJ), from {0.8 * least:,.3g}")
    totals.set_title(f"{report.accelerator}: gain {report.gain:.3f}", loc="left")
    layers.barh(names, [extra[name] for name in names], color="tab:red")
    layers.invert_yaxis()
    layers.axvline(0.0, color="black", linewidth=0.8)
    layers.set_xlabel("energy more than on natural inputs (uJ)")
    layers.set_title(f"where {worst.name} spends it", loc="left")
    return figure
