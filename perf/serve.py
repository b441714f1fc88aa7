"""Cost of steering in a step of a served model.

    python perf/serve.py          in the environment that `make test-serving` makes

One engine on this machine decodes 1, 8 and 32 requests at once. All that steering adds to a step
is timed where it runs, beside the step itself: finding the rows, and the operator. Every request is
steered, or none ("idle": armed, and nobody asks). Conditions take turns.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.update(
    VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR"
)

from vllm import LLM, SamplingParams

import odesteer as ods
from odesteer.backends.vllm import ask, options, runner_hooks
from odesteer.backends.vllm import install as arm
from odesteer.evaluation.demo import contrast
from odesteer.models.loading import load_model, local_copy

ROWS = (1, 8, 32)
CONDITIONS: dict[str, Any] = {
    "idle": None,
    "vector": ask("vector"),
    "ODE, 10 steps": ask("flow"),
    "ODE, target": ask("flow", target=0.9, angle=0.4),
}
TOKENS, ROUNDS = 33, 5


class Clock:
    """Seconds spent in some functions, by step."""

    def __init__(self) -> None:
        self.spent = 0.0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += time.perf_counter() - start

        return timed


def steerings(folder: Path) -> dict[str, Path]:
    model, tokenizer = load_model("smollm2")
    made = {
        "vector": ods.fit(model, tokenizer, contrast()[0], method="caa", layer=14),
        "flow": ods.fit(model, tokenizer, contrast()[0], method="odesteer", layer=14),
    }
    made["flow"] = made["flow"].with_strength(ods.Angle(0.2))
    assert made["flow"].steps == 10
    return {name: one.save_pretrained(folder / name) for name, one in made.items()}


def main() -> None:
    clock = Clock()
    with TemporaryDirectory() as name:
        given = options(steerings(Path(name)))
        arm.steer = clock.of(arm.steer)
        runner_hooks.scheduled_v1 = clock.of(runner_hooks.scheduled_v1)
        runner_hooks.RunnerSteering.begin = clock.of(runner_hooks.RunnerSteering.begin)  # type: ignore[method-assign]
        engine = LLM(
            str(local_copy()),
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            block_size=32,
            enable_prefix_caching=False,
            **given,
        )
    steps: dict[tuple[int, str], list[tuple[float, float]]] = {}
    for round_ in range(ROUNDS + 1):
        for rows in ROWS:
            for condition, extra in CONDITIONS.items():
                params = SamplingParams(
                    temperature=0, max_tokens=TOKENS, ignore_eos=True, extra_args=extra
                )
                for row in range(rows):
                    engine.llm_engine.add_request(
                        f"{round_}-{rows}-{condition}-{row}",
                        {"prompt_token_ids": [10 + row, 20, 30, 40]},
                        params,
                    )
                while engine.llm_engine.has_unfinished_requests():
                    clock.spent, start = 0.0, time.perf_counter()
                    outputs = engine.llm_engine.step()
                    whole = time.perf_counter() - start
                    decodes = outputs and min(len(o.outputs[0].token_ids) for o in outputs) > 1
                    if round_ and decodes:  # the first round is to get warm
                        steps.setdefault((rows, condition), []).append((clock.spent, whole))
    print("| rows | condition | added a step, ms [quartiles] | a step, ms | share | steps |")
    print("|---:|---|---:|---:|---:|---:|")
    for (rows, condition), found in steps.items():
        added = [1e3 * one for one, _ in found]
        low, middle, high = statistics.quantiles(added, n=4)
        step = 1e3 * statistics.median(whole for _, whole in found)
        print(
            f"| {rows} | {condition} | {middle:.3f} [{low:.3f}, {high:.3f}] | {step:.1f} | "
            f"{middle / step:.2%} | {len(found)} |"
        )


if __name__ == "__main__":
    main()
