"""How often a target is reached within its budget, on activations that nothing was fitted on.

    python -m experiments.reachability

Packaged behaviours, responses read at block 14 of SmolLM2-135M-Instruct. Three of four groups are
fitted, the unwanted texts of the fourth are moved towards P = 0.9, over four folds. For each
budget, the share of rows in percent that were there already, that reached it, that spent the
budget on the way, and that were stuck where h rises no more.
"""

import torch

import odesteer as ods
from odesteer.models.loading import load_model
from odesteer.ode import Result

BEHAVIOURS = ("formal", "cheerful", "pessimistic", "technical", "sea", "hedging")
METHODS = ("caa", "odesteer", "odesteer-paper", "odesteer-network")
BUDGETS = (0.1, 0.2, 0.4, 0.8)
FOLDS, BLOCK, WANTED = 4, 14, 0.9
ENDS = (Result.ALREADY_THERE, Result.REACHED, Result.BUDGET_SPENT, Result.STUCK)


def ends(method: str, positive: torch.Tensor, negative: torch.Tensor) -> list[torch.Tensor]:
    """Return for each budget how many rows of every fold ended in each way, [len(ENDS)]."""
    counts = [torch.zeros(len(ENDS)) for _ in BUDGETS]
    fold = torch.arange(len(negative)) % FOLDS
    for held_out in range(FOLDS):
        kept = fold != held_out
        steering = ods.METHODS[method]().fit(positive[kept], negative[kept])
        for count, budget in zip(counts, BUDGETS, strict=True):
            target = ods.Target(WANTED, budget=ods.Angle(budget))
            result = steering.with_strength(target).solution(negative[~kept]).result
            count += torch.tensor([int((result == int(end)).sum()) for end in ENDS])
    return counts


def main() -> None:
    """Print the table."""
    model, tokenizer = load_model("smollm2")
    print(f"| behaviour | method | {' | '.join(f'angle {budget:g}' for budget in BUDGETS)} |")
    print(f"|---|---|{'---|' * len(BUDGETS)}")
    for behaviour in BEHAVIOURS:
        contrast = ods.behaviours.load(behaviour)
        rows = ods.activations(model, tokenizer, contrast, BLOCK, tokens="response")
        for method in METHODS:
            cells = [
                " + ".join(f"{100 * share:.0f}" for share in (count / count.sum()).tolist())
                for count in ends(method, *rows)
            ]
            print(f"| {behaviour} | `{method}` | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
