"""Transfer tasks: knowledge and reasoning under a steering learnt elsewhere.

They run through lm-evaluation-harness, which has its own texts, prompts and metrics: a steered
model is handed to it as any other.

Source of the choice: ODESteer's table 8 (a fit on TruthfulQA), https://arxiv.org/abs/2602.17560
"""

# our name: (the harness's task, its metric)
TRANSFER = {
    "mmlu": ("mmlu", "acc"),
    "arc-challenge": ("arc_challenge", "acc_norm"),
    "commonsense-qa": ("commonsense_qa", "acc"),
}
