"""Colours and style of all figures."""

from typing import Any

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PINK, SKY, VERMILION = PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00",
)  # fmt: skip
MARKERS = "os^vDPX<>ph*d8"  # one per colour, so that a figure also reads in grey
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 110,
    "savefig.dpi": 160,
}
# By method. Beyond the palette: middle tones, told apart by their markers where hues are close.
METHOD_COLOURS = {
    "none": "#555555",
    "caa": ORANGE,
    "repe": VERMILION,
    "iti": GREEN,
    "iti-heads": "#44AA99",
    "mimic": "#AA4499",
    "linear-act": "#999933",
    "hpr": "#CC6677",
    "re-control": "#A6761D",
    "truthflow": "#8C6BB1",
    "natural-gradient": "#C2185B",
    "odesteer": BLUE,
    "odesteer-trained": "#5C6BC0",
    "odesteer-paper": SKY,
    "odesteer-one-step": PINK,
    "odesteer-fourier": "#6F8FD6",
    "odesteer-gaussian": "#2AA1A8",
    "odesteer-mixture": "#7A9A3B",
    "odesteer-network": "#B07AA1",
    "safety-filter": "#B8860B",
}
