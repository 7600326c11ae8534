"""Pictures: pure functions of plain values and data frames, each gives a matplotlib ``Figure``.

Shot curves (of one run, :func:`plot_shots`; of arms, :func:`plot_arms`), training, answers by type,
confusions, differences (:func:`plot_differences`; of a sweep, :func:`plot_forest`), galleries,
attention over images, all in one style (:mod:`flamingo.plots.style`): Okabe and Ito's colours,
which every colour-blind reader can tell apart, and for print a marker, dash or hatch beside each. A
notebook shows a figure as the last value of a cell; a file is ``figure.savefig(path)``.
"""

from matplotlib.figure import Figure

from flamingo.plots.answers import plot_confusion, plot_groups
from flamingo.plots.arms import plot_arms
from flamingo.plots.attention import plot_attention
from flamingo.plots.files import figure_bytes
from flamingo.plots.forest import plot_forest
from flamingo.plots.images import Exhibit, plot_gallery, plot_visibility
from flamingo.plots.lines import plot_differences, plot_lines
from flamingo.plots.shots import plot_shots
from flamingo.plots.training import plot_gates, plot_loss

__all__ = [
    "Exhibit",
    "Figure",
    "figure_bytes",
    "plot_arms",
    "plot_attention",
    "plot_confusion",
    "plot_differences",
    "plot_forest",
    "plot_gallery",
    "plot_gates",
    "plot_groups",
    "plot_lines",
    "plot_loss",
    "plot_shots",
    "plot_visibility",
]
