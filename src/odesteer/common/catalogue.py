"""Names of methods, solvers, positions, token readings and KL budgets, without torch.

Help and completion read them here; the tables themselves (`METHODS`, `SOLVERS`, ...) import torch.
A test compares the two.
"""

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
SOLVERS = ("euler", "midpoint", "heun", "rk4", "rk4-38", "great-circle", "dopri5")
POSITIONS = ("last+generated", "generated", "prompt", "all")
TOKENS = ("last", "mean", "response", "prompt")
# Words for KL budgets, in nats a token.
KL_BUDGETS = {"light": 0.1, "medium": 0.2, "strong": 0.4}
