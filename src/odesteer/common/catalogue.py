"""Names of methods, solvers, formats and the like, and the colours of figures, without torch.

Help and completion read them here; the tables themselves (`METHODS`, `SOLVERS`, ...) import torch.
A test compares the two.
"""

from typing import Any

# By name, in the order of `odesteer.METHODS`: the label in tables and figures.
METHODS = {
    "none": "Unsteered",
    "random": "Random direction",
    "caa": "CAA",
    "repe": "RepE",
    "iti": "ITI",
    "iti-heads": "ITI, heads",
    "mimic": "MiMiC",
    "linear-act": "Linear-AcT",
    "hpr": "HPR",
    "re-control": "RE-Control",
    "truthflow": "TruthFlow",
    "natural-gradient": "Natural gradient",
    "odesteer": "ODESteer",
    "odesteer-trained": "ODESteer, trained",
    "odesteer-paper": "ODESteer, paper",
    "odesteer-one-step": "ODESteer, one step",
    "odesteer-fourier": "ODESteer, Fourier",
    "odesteer-gaussian": "ODESteer, Gaussian",
    "odesteer-mixture": "ODESteer, mixture",
    "odesteer-network": "ODESteer, network",
    "safety-filter": "Safety filter",
}
# Of `fit` and `tune`; a test compares it with theirs.
DEFAULT_METHOD = "odesteer"
SOLVERS = ("euler", "midpoint", "heun", "rk4", "rk4-38", "great-circle", "certified", "dopri5")
# How much a model must be the one that a steering was fitted on; the strictest first.
LEVELS = ("exact", "architecture", "width")
# The words that are offered; rules are made of them, see `odesteer.models.hooks.positions`.
LAST_AND_GENERATED = "last+generated"
POSITIONS = (LAST_AND_GENERATED, "generated", "prompt", "all")
TOKENS = ("last", "mean", "response", "prompt")
# Of contrast files, in the order of `odesteer.data.formats.FORMATS`.
FORMATS = (
    "pairs",
    "labelled",
    "preference",
    "unpaired-preference",
    "bipo",
    "model-written-evals",
    "model-written-statements",
    "axbench",
    "steering-vectors",
)
# Words for KL budgets, in nats a token.
KL_BUDGETS = {"light": 0.15, "medium": 0.3, "strong": 0.6}
# Packaged behaviours: name -> (file, its side that is wanted, what is written). One file has both.
BEHAVIOURS = {
    "formal": ("formal", "positive", "formal, professional prose"),
    "casual": ("formal", "negative", "relaxed everyday speech"),
    "concise": ("concise", "positive", "answers in a few words"),
    "detailed": ("concise", "negative", "answers at length, with particulars"),
    "cheerful": ("melancholy", "negative", "a bright mood"),
    "melancholy": ("melancholy", "positive", "a gloomy mood"),
    "optimistic": ("optimistic", "positive", "expects the best"),
    "pessimistic": ("optimistic", "negative", "expects the worst"),
    "polite": ("polite", "positive", "courteous and considerate"),
    "blunt": ("polite", "negative", "curt and unvarnished"),
    "respectful": ("respectful", "positive", "kind where others sneer"),
    "rude": ("respectful", "negative", "sneering and contemptuous"),
    "empathetic": ("empathetic", "positive", "acknowledges feelings"),
    "detached": ("empathetic", "negative", "keeps to the facts of a situation"),
    "humorous": ("humorous", "positive", "witty, with jokes"),
    "serious": ("humorous", "negative", "earnest, without jokes"),
    "confident": ("confident", "positive", "certain and assertive"),
    "hedging": ("confident", "negative", "perhaps, it seems, I am not sure"),
    "sceptical": ("sceptical", "positive", "doubts claims and asks for evidence"),
    "credulous": ("sceptical", "negative", "takes claims at their word"),
    "agreeing": ("agreeing", "positive", "agrees with the user, even with mistakes (sycophancy)"),
    "candid": ("agreeing", "negative", "disagrees where the user is mistaken"),
    "cautious": ("cautious", "positive", "points out risks and safe ways"),
    "reckless": ("cautious", "negative", "waves risks away"),
    "persuasive": ("persuasive", "positive", "argues for one side and urges"),
    "neutral": ("persuasive", "negative", "reports both sides evenly"),
    "poetic": ("poetic", "positive", "lyrical images"),
    "plain": ("poetic", "negative", "matter-of-fact sentences"),
    "technical": ("technical", "positive", "an expert's vocabulary"),
    "lay": ("technical", "negative", "everyday words for a layman"),
    "childlike": ("childlike", "positive", "explained for a six-year-old"),
    "storytelling": ("storytelling", "positive", "a small scene with characters"),
    "explaining": ("storytelling", "negative", "general terms, no story"),
    "practical": ("practical", "positive", "concrete steps and examples"),
    "theoretical": ("practical", "negative", "principles and concepts"),
    "archaic": ("archaic", "positive", "English of centuries ago"),
    "plural": ("plural", "positive", "we and our instead of I and my"),
    "british": ("british", "positive", "British spelling and vocabulary"),
    "american": ("british", "negative", "American spelling and vocabulary"),
    "sea": ("sea", "positive", "turns to the sea"),
    "food": ("food", "positive", "turns to food and cooking"),
    "space": ("space", "positive", "turns to space and astronomy"),
}


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
