"""How every figure looks: one palette, one type size, and SVG whose colours follow the page into dark mode.

Figures are made on `matplotlib.figure.Figure` itself, never through pyplot, so that drawing leaves no state behind.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import matplotlib as mpl
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, RULE, FAINT, PAPER = "#1d2530", "#66717f", "#d3d9df", "#eef1f4", "#fdfefe"
SERIES = ("#2b6cb0", "#cf5c36", "#3b9278", "#8661a5", "#b1851b", "#4f6475")

# Each colour is a variable of the page; the page sets another value for it in dark mode.
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", FAINT: "--faint", PAPER: "--paper"} | {
    colour: f"--series-{index}" for index, colour in enumerate(SERIES)
}
AXIS_LABELS = {
    "axial": "z (mm, towards superior)",
    "coronal": "y (mm, towards anterior)",
    "sagittal": "x (mm, towards right)",
}
"""What stands along the axis that slices follow."""
HALO = [patheffects.withStroke(linewidth=2.5, foreground=PAPER)]
"""Path effects of a label that may stand on a line or a bar."""

_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    # Without a salt the ids in an SVG are random, and the same evaluation would give another page each time.
    "svg.hashsalt": "neuroray",
}


def styled[**P, R](draw: Callable[P, R]) -> Callable[P, R]:
    """Runs a drawing function under the house style."""

    @wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(_SETTINGS):
            return draw(*args, **kwargs)

    return draw_in_style


def series_colour(index: int) -> str:
    """The colour of class or curve `index`; they repeat after six."""
    return SERIES[index % len(SERIES)]


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for a page: scales to its column, takes its font and colours from the page.

    Args:
        figure: Drawn under `styled`.
        name: Goes in front of every id in it, so that two figures on one page cannot mix up their clip paths.
    """
    text = io.StringIO()
    with mpl.rc_context(_SETTINGS):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'id="', f'id="{name}-', svg)
    svg = re.sub(r'(xlink:href="|href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def to_png(figure: Figure, *, dots_per_inch: int = 200, background: str = "white") -> bytes:
    """The figure as PNG, the same bytes each time."""
    data = io.BytesIO()
    with mpl.rc_context(_SETTINGS):
        figure.savefig(data, format="png", dpi=dots_per_inch, facecolor=background, metadata={"Software": None})
    return data.getvalue()


def png_address(png: bytes) -> str:
    """A PNG as an address that an `<img>` takes without a second file."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def place_label(axes: Axes, x: float, y: float, text: str, *, colour: str, align: str = "left") -> None:
    """Writes a name beside its curve, in the curve's colour, in place of a legend."""
    axes.annotate(
        text,
        (x, y),
        xytext=(4 if align == "left" else -4, 0),
        textcoords="offset points",
        color=colour,
        ha=align,
        va="center",
        fontsize=7.5,
    )


def note_line(axes: Axes, height: float, text: str) -> None:
    """Writes what a horizontal line is, above its right end."""
    axes.annotate(
        text,
        (1, height),
        xycoords=("axes fraction", "data"),
        xytext=(-2, 3),
        textcoords="offset points",
        ha="right",
        color=MUTED,
        fontsize=7.5,
        path_effects=HALO,
    )
