"""Pictures: pure functions of plain values and data frames, each gives a matplotlib ``Figure``.

Shot curves, training, answers by type, confusions, differences, galleries, attention over images,
all in one style (:mod:`flamingo.plots.style`): Okabe and Ito's colours, which every colour-blind
reader can tell apart, and for print a marker, dash or hatch beside each. A notebook shows a figure
as the last value of a cell; a file is ``figure.savefig(path)``.
"""

from flamingo.plots.answers import plot_confusion, plot_groups
from flamingo.plots.attention import plot_attention
from flamingo.plots.images import Exhibit, plot_gallery, plot_visibility
from flamingo.plots.lines import plot_differences, plot_lines
from flamingo.plots.shots import plot_shots
from flamingo.plots.training import plot_gates, plot_loss

__all__ = [
    "Exhibit",
    "plot_attention",
    "plot_confusion",
    "plot_differences",
    "plot_gallery",
    "plot_gates",
    "plot_groups",
    "plot_lines",
    "plot_loss",
    "plot_shots",
    "plot_visibility",
]
