"""Cost of steering while a model generates on a GPU.

    python perf/decode_gpu.py --out perf/results
    python perf/decode_gpu.py --tiny --out /tmp/results     # on a CPU, in seconds: tries the script

The shape of Llama-3.1-8B with random weights in bfloat16: what is generated means nothing, and
every token takes as long as with real ones. One copy of the weights, three models: unsteered, CAA,
and ODESteer (k = 64, 10 great-circle steps) on the block in the middle, by turns. Batches of 1 and
16 prompts of 16 tokens and 128 new tokens each, with

    dynamic     a growing cache, launched from Python
    static      a cache of fixed size and torch.compile, as generate() sets it up on a GPU
"""

import argparse
import copy
import itertools
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from perf.cuda_timing import machine, report, table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from odesteer.ode import ConstantField, GradientField, QuadraticBarrier, Whitening
from odesteer.steering import Steering

PROMPT, RANK = 16, 64
SIZES: dict[str, int] = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
TINY: dict[str, int] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


def model_of(sizes: dict[str, int], device: str) -> LlamaForCausalLM:
    config = LlamaConfig(**sizes, max_position_embeddings=512, eos_token_id=None, pad_token_id=0)
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def twin_of(model: nn.Module) -> Any:
    """Another model on the same weights: one that is steered stays so, and is compiled once."""
    weights = itertools.chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(weight): weight for weight in weights})


def steerings_of(d: int, layer: int) -> dict[str, Steering | None]:
    generator = torch.Generator().manual_seed(0)
    centre, vector = torch.randn(2, d, generator=generator) / d**0.5
    V = torch.linalg.qr(torch.randn(d, min(RANK, d), generator=generator)).Q
    curvature, slope = torch.randn(2, V.shape[1], generator=generator)
    field = GradientField(QuadraticBarrier(Whitening(centre), V, curvature, slope, 0.0))
    moving = {"solver": "great-circle", "steps": 10, "layer": layer}
    return {
        "unsteered": None,
        "caa": Steering(field=ConstantField(vector), strength=1.0, layer=layer),
        "odesteer": Steering(field=field, strength=1.0, **moving),
    }


def seconds_of(model: Any, prompt: torch.Tensor, tokens: int, cache: str) -> float:
    """Of one generation of exactly `tokens` tokens."""
    if prompt.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        cache_implementation=cache,
    )
    if prompt.is_cuda:
        torch.cuda.synchronize()
    assert result.shape[1] == prompt.shape[1] + tokens
    return time.perf_counter() - start


def measure(
    models: dict[str, Any], batch: int, cache: str, tokens: int, repetitions: int
) -> dict[str, Any]:
    """Tokens a second of each model, by repetition; the first generations compile and warm up."""
    first = next(iter(models.values()))
    shape = (batch, PROMPT)
    prompt = torch.randint(1, first.config.vocab_size, shape, device=first.device)
    for model, _ in itertools.product(models.values(), range(2)):
        seconds_of(model, prompt, tokens, cache)
    speeds: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    for repetition in range(repetitions):
        turn = repetition % len(names)
        for name in names[turn:] + names[:turn]:
            seconds = seconds_of(models[name], prompt, tokens, cache)
            speeds[name].append(batch * tokens / seconds)
    return {"batch": batch, "cache": cache, "tokens": tokens, "speeds": speeds}


def text_of(setting: dict[str, Any], results: list[dict[str, Any]]) -> str:
    rows = []
    for each in results:
        for name, speeds in each.get("speeds", {}).items():
            pairs = zip(speeds, each["speeds"]["unsteered"], strict=True)
            share = statistics.median(one / other for one, other in pairs)
            speed = f"{statistics.median(speeds):.1f}"
            rows.append([each["cache"], each["batch"], name, speed, f"{share:.3f}"])
        if "failed" in each:
            rows.append([each["cache"], each["batch"], each["failed"], "", ""])
    facts = ", ".join(f"{key} {value}" for key, value in setting.items())
    head = ["cache", "batch", "steering", "tokens a second", "of unsteered"]
    return f"# Generation\n\n{facts}\n\n{table(head, rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("perf/results"))
    parser.add_argument("--tiny", action="store_true", help="a small model on a CPU")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--caches", nargs="+", default=["dynamic", "static"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    # Three models and the two halves of a steered one share the code that is compiled.
    torch._dynamo.config.cache_size_limit = 64
    sizes, device = (TINY, "cpu") if arguments.tiny else (SIZES, "cuda")
    setting: dict[str, Any] = {"shape": "tiny"} if arguments.tiny else machine()
    model = model_of(sizes, device)
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        models: dict[str, Any] = {}
        steerings = steerings_of(sizes["hidden_size"], sizes["num_hidden_layers"] // 2)
        twins = {name: twin_of(model) for name in steerings}
        for name, steering in steerings.items():
            models[name] = twins[name]
            if steering is not None:
                stack.enter_context(steering.attach(twins[name]))
        for cache, batch in itertools.product(arguments.caches, arguments.batches):
            try:
                result = measure(models, batch, cache, arguments.tokens, arguments.repetitions)
            except Exception as error:  # the others are worth having all the same
                line = f"{type(error).__name__}: {error}".splitlines()[0]
                result = {"batch": batch, "cache": cache, "failed": line}
            results.append(result)
            done = {"setting": setting, "results": results}
            report(arguments.out, "decode_gpu", done, text_of(setting, results))
    print(text_of(setting, results))


if __name__ == "__main__":
    main()
