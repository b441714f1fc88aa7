"""Cost of steering while a real model generates on a CPU.

    python perf/decode.py [--batches 1 16] [--json decode.json]

SmolLM2-135M-Instruct, transformers' own `generate`, float32, in one process and by turns: the
unsteered model, CAA, ODESteer as it is fitted by default, and the paper's configuration, all
learnt from the packaged sentences at one middle layer. Every run generates the same number of
tokens; each repetition's ratio is to the unsteered run of that repetition. Runs differ from one
another by more than steering costs, so the part of a run that is spent in the steering's hook
is measured too, in runs of their own.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timing import interleaved, machine, markdown, ratios, spread

import odesteer as ods
from odesteer.evaluation.demo import contrast
from odesteer.models.hooks.handle import Handle
from odesteer.models.loading import load_model

LAYER = 14
METHODS = {"CAA": "caa", "ODESteer": "odesteer", "paper's configuration": "odesteer-paper"}
PROMPT = "Describe the street outside your window, and the people who pass by in the morning."


def generating(
    model: Any, tokenizer: Any, batch: int, tokens: int, steering: Any
) -> Callable[[], None]:
    """A run of `generate` from `batch` prompts, with or without a steering."""
    inputs = tokenizer([PROMPT] * batch, return_tensors="pt")

    def run() -> None:
        with nullcontext() if steering is None else steering.attach(model), torch.no_grad():
            model.generate(
                **inputs,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )

    return run


def share_in_hook(run: Callable[[], None]) -> float:
    """The part of a run that is spent steering: in the hook of the steered block."""
    original, inside = Handle._apply, [0.0]

    def timed(handle: Handle, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = original(handle, *args, **kwargs)
        inside[0] += time.perf_counter() - start
        return result

    setattr(Handle, "_apply", timed)  # noqa: B010
    try:
        start = time.perf_counter()
        run()
        return inside[0] / (time.perf_counter() - start)
    finally:
        setattr(Handle, "_apply", original)  # noqa: B010


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 16))
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = load_model("smollm2")
    texts, _ = contrast()
    steerings = {
        name: ods.fit(model, tokenizer, texts, method, layer=LAYER, strength=ods.Angle(0.1))
        for name, method in METHODS.items()
    }
    barrier: Any = steerings["ODESteer"].barrier
    rank, directions = barrier.basis.shape[1], len(barrier.whitening.stretch)
    rows, kept = [], []
    for batch in options.batches:
        runs = {
            name: generating(model, tokenizer, batch, options.tokens, steering)
            for name, steering in ({"unsteered": None} | steerings).items()
        }
        seconds = interleaved(runs, options.repetitions)
        kept.append({"batch": batch, "seconds": seconds})
        for name, speed in ratios(seconds, "unsteered").items():
            rate = batch * options.tokens / statistics.median(seconds[name])
            shares = [share_in_hook(runs[name]) for _ in range(3)]
            inside = f"{100 * statistics.median(shares):.2f} %"
            rows.append([batch, name, f"{rate:.1f}", spread(speed, 3), inside])
            print(*rows[-1], sep=" | ", flush=True)
    about = (
        f"{machine()}; layer {LAYER}, k = {rank}, {directions} directions; "
        f"{options.tokens} tokens; medians of {options.repetitions} (min to max)"
    )
    print(f"\n{about}\n")
    print(markdown(("batch", "steering", "tokens/s", "of unsteered", "in the hook"), rows))
    if options.json is not None:
        options.json.write_text(json.dumps({"about": about, "rows": kept}), encoding="utf-8")


if __name__ == "__main__":
    main()
