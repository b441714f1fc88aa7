"""Survey of transformers architectures whose decoder blocks are found.

    python -m tools.architecture_survey [--markdown] [--task image-text-to-text]

Every class of AutoModelForCausalLM (or AutoModelForImageTextToText) is built from its default
configuration, made small by `tools.tiny_models`, and judged by what the model itself says:

    "values"    a forward pass on the CPU: block i's output is hidden_states[i + 1], bit for bit
    "identity"  a forward pass without weights (meta device): it is the very same tensor
    "recorder"  where no forward pass runs: the blocks are the modules of which transformers
                records hidden states, in order, and as many as the configuration says

The last hidden state comes after the final norm, so the last block is judged by being the last
of the right number. A model that no oracle can judge does not count as right.
"""

import argparse
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from tools.tiny_models import short, tiny_models
from torch import Tensor, nn

from odesteer.models.layers import block_output, find_decoder, find_layers, hidden_size

Task = Literal["causal-lm", "image-text-to-text"]
Verdict = Literal["right", "no stream", "refused", "wrong", "unjudged"]
# "no stream": the blocks are the right ones, but odesteer refuses what they pass on. "refused":
# odesteer says that it cannot, and no oracle confirmed what it found.
ROWS, TOKENS = 2, 7  # unlike, so that a stream with time first is noticed


@dataclass(frozen=True)
class Row:
    """Result of the survey for one architecture."""

    model_type: str
    model: str  # the class
    blocks: str  # the path of the first one
    depth: int  # number of blocks found
    width: int  # of the stream, from `hidden_size`
    oracle: str  # "values", "identity", "recorder" or "none"
    verdict: Verdict
    reason: str  # why it is not right, or why no forward pass judged


def survey(task: Task = "causal-lm") -> Iterator[Row]:
    """Yield one row for each architecture, in transformers' order."""
    from transformers.models.auto import modeling_auto
    from transformers.utils import logging

    names: dict[str, Any] = {
        "causal-lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "image-text-to-text": modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }[task]
    verbosity = logging.get_verbosity()
    logging.set_verbosity(50)  # critical alone: defaults made small are full of things to warn of
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for model_type, name in names.items():
                yield judge(task, model_type, name if isinstance(name, str) else name[0])
    finally:
        logging.set_verbosity(verbosity)


def judge(task: Task, model_type: str, name: str) -> Row:
    """Build one architecture, find its blocks, and compare them with what the model says."""
    reasons: list[str] = []
    recorded: Row | None = None
    for model in tiny_models(task, model_type, reasons):
        try:
            blocks = find_layers(model)
        except ValueError as error:
            return Row(model_type, name, "", 0, 0, "none", "refused", str(error))
        path = next(path for path, module in model.named_modules() if module is blocks[0])
        facts = (model_type, name, path, len(blocks), hidden_size(model) or 0)
        try:
            return Row(*facts, *_by_forward(model, blocks))
        # Any error of a model made from defaults: a pass that does not run judges nothing.
        except Exception as error:
            reasons.append(short(error))
        if recorded is None or recorded.verdict == "unjudged":
            recorded = Row(*facts, *_by_recorder(model, blocks))
    why = "; ".join(dict.fromkeys(reasons))
    if recorded is None:
        return Row(model_type, name, "", 0, 0, "none", "unjudged", why)
    return replace(recorded, reason="; ".join(filter(None, [recorded.reason, why])))


def _by_forward(model: Any, blocks: Sequence[nn.Module]) -> tuple[str, Verdict, str]:
    """Compare what the blocks return with the hidden states of a forward pass."""
    returned: list[tuple[int, Any]] = []

    def keep(i: int) -> Callable[..., None]:
        return lambda _module, _args, output: returned.append((i, output))

    hooks = [block.register_forward_hook(keep(i)) for i, block in enumerate(blocks)]
    try:
        states = _hidden_states(model, find_decoder(model))
    finally:
        for hook in hooks:
            hook.remove()
    meta = states[0].is_meta
    oracle = "identity" if meta else "values"
    streams = [_first(output) for _, output in returned]
    # Blocks that attend to an image do not run without one; the others run once, in order.
    order = [i for i, _ in returned]
    if order != sorted(set(order)) or len(order) < 2:
        return oracle, "wrong", f"{len(blocks)} blocks ran {len(returned)} times"
    if len(states) != len(streams) + 1:
        return oracle, "wrong", f"{len(streams)} blocks ran, {len(states)} hidden states given"
    # Some models give no embedding before the first block, and the last block's output twice:
    # before and after the norm.
    agrees = any(
        all(a is b if meta else torch.equal(a, b) for a, b in zip(these, those, strict=True))
        for these, those in ((streams[:-1], states[1:-1]), (streams, states[:-1]))
    )
    try:
        for _, output in returned:
            block_output(output, (ROWS, TOKENS), hidden_size(model))
    except ValueError as error:
        return oracle, "no stream" if agrees else "refused", str(error)
    if not agrees:
        return oracle, "wrong", "the blocks do not return the hidden states"
    if hidden_size(model) is None:
        return oracle, "wrong", "hidden_size does not know how wide the stream is"
    return oracle, "right", ""


def _first(output: Any) -> Tensor:
    stream: Tensor = output[0] if isinstance(output, tuple | list) else output
    return stream


def _hidden_states(model: Any, decoder: Any) -> Sequence[Tensor]:
    """Hidden states of the model, or of its decoder if the model does not run without an image."""
    device = next(decoder.parameters()).device
    ids = torch.arange(ROWS * TOKENS, device=device).reshape(ROWS, TOKENS) + 10
    arguments: dict[str, Any] = {"input_ids": ids, "output_hidden_states": True}
    with torch.no_grad():
        try:
            output = model(**arguments, use_cache=False)
        except Exception:
            output = decoder(**arguments)
    states: Sequence[Tensor] | None = getattr(output, "hidden_states", None)
    if states is None:
        raise ValueError("it returns no hidden states")
    return states


def _by_recorder(model: nn.Module, blocks: Sequence[nn.Module]) -> tuple[str, Verdict, str]:
    """Compare the blocks with the modules that transformers itself records."""
    decoder: Any = find_decoder(model)
    recorded = getattr(decoder, "_can_record_outputs", None) or {}
    target = recorded.get("hidden_states")
    targets = target if isinstance(target, list) else [target]
    classes = tuple(
        kind
        for kind in (getattr(target, "target_class", target) for target in targets)
        if isinstance(kind, type)
    )
    if not classes:
        return "none", "unjudged", "transformers names no class that it records"
    depth = getattr(decoder.config, "num_hidden_layers", None)
    if depth != len(blocks):
        return "recorder", "wrong", f"{len(blocks)} blocks found, the configuration says {depth}"
    if [m for m in decoder.modules() if isinstance(m, classes)] != list(blocks):
        names = ", ".join(kind.__name__ for kind in classes)
        return (
            "recorder",
            "wrong",
            f"transformers records {names}, these are {type(blocks[0]).__name__}",
        )
    return "recorder", "right", ""


def confirmed(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose blocks an oracle confirmed, whether they can be steered or not."""
    return [row for row in rows if row.verdict in ("right", "no stream")]


def report(rows: Sequence[Row], markdown: bool = False) -> str:
    """Return the counts, and the rows that are not steered, each with its reason."""
    right = [row for row in rows if row.verdict == "right"]
    count = len(confirmed(rows))
    judges = Counter(row.oracle for row in confirmed(rows))
    oracles = ", ".join(f"{n} by {oracle}" for oracle, n in judges.most_common())
    lines = [
        f"Blocks found: {count} of {len(rows)} ({count / len(rows):.1%}), judged: {oracles}.",
        f"Of these, one residual stream to steer: {len(right)} ({len(right) / len(rows):.1%}).",
    ]
    rest = [row for row in rows if row.verdict != "right"]
    if rest and markdown:
        lines += ["", "| model type | class | verdict | reason |", "|---|---|---|---|"]
    form = "| {} | {} | {} | {} |" if markdown else "{:24} {:36} {:9} {}"
    lines += [form.format(row.model_type, row.model, row.verdict, row.reason) for row in rest]
    return "\n".join(lines)


def main() -> None:
    """Run the command above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Raw)
    parser.add_argument("--task", choices=get_args(Task), default="causal-lm")
    parser.add_argument("--markdown", action="store_true", help="a table for the documentation")
    parser.add_argument("--all", action="store_true", help="also the rows that are right")
    options = parser.parse_args()
    rows = list(survey(options.task))
    if options.all:
        for row in rows:
            print(f"{row.model_type:24} {row.blocks:40} {row.depth:4} {row.width:6} {row.oracle}")
    print(report(rows, options.markdown))


_Raw = argparse.RawDescriptionHelpFormatter

if __name__ == "__main__":
    main()
