"""Time and memory of extracting TruthfulQA's activations.

Ours beside what one writes without a library: a full forward pass with all hidden states and
logits, padded batches of 10 texts in file order. Also with one ingredient more at a time.

    python perf/extract.py --questions 100 --repetitions 5

Seconds are of repetitions by turns in one process. Memory is that of a process of its own for
each way: the peak of its resident set after the model is loaded, every weight touched and one text
read, less what was resident then. The peak that loading left is reset (Linux).
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from timing import interleaved, machine, markdown, ratios, spread
from torch import Tensor

import odesteer as ods
from odesteer.data import Contrast
from odesteer.evaluation.benchmarks.truthfulqa import TEMPLATE, TruthfulQA
from odesteer.extraction.extract import extract
from odesteer.extraction.tokenize import texts
from odesteer.models.capture import captured
from odesteer.models.layers import find_layers
from odesteer.models.loading import load_model

ROWS = 10  # texts a batch of the reference
REFERENCE = "full forward, batches of 10 in file order"
OURS = "and beginnings once (odesteer.activations)"


class Work:
    """One model, one layer, some questions; each way gives [n, d] in file order."""

    def __init__(self, model: str, questions: int | None):
        self.model, self.tokenizer = load_model(model)
        self.layer = len(find_layers(self.model)) // 2
        examples = TruthfulQA.load().answers
        groups = dict.fromkeys(example.group for example, _ in examples)
        chosen = set(list(groups)[:questions])
        self.examples = [(e, correct) for e, correct in examples if e.group in chosen]
        self.contrast = Contrast(
            tuple(e for e, correct in self.examples if correct),
            tuple(e for e, correct in self.examples if not correct),
            TEMPLATE,
        )
        correct = [i for i, (_, yes) in enumerate(self.examples) if yes]
        wrong = [i for i, (_, yes) in enumerate(self.examples) if not yes]
        self.places = torch.tensor(correct + wrong).argsort()
        self.ways: dict[str, Callable[[], Tensor]] = {
            REFERENCE: self.full,
            "stopped at the layer": self.stopped,
            "and long texts with long texts": self.sorted,
            OURS: self.ours,
        }

    def tokens(self) -> list[list[int]]:
        rows = texts(self.model, self.tokenizer, self.contrast).rows
        return [rows[i] for i in self.places]

    def full(self) -> Tensor:
        def forward(ids: Tensor, mask: Tensor) -> Tensor:
            output = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
            return output.hidden_states[self.layer + 1]

        return self._in_file_order(forward)

    def stopped(self) -> Tensor:
        with captured(self.model, [self.layer], "residual") as forward:
            return self._in_file_order(lambda ids, mask: forward(ids, mask)[self.layer])

    def sorted(self) -> Tensor:
        return extract(self.model, self.tokens(), [self.layer], share=False)[0]

    def ours(self) -> Tensor:
        both = ods.activations(self.model, self.tokenizer, self.contrast, layer=self.layer)
        return torch.cat(both)[self.places]

    def _in_file_order(self, forward: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        rows, device, found = self.tokens(), self.model.device, []
        for start in range(0, len(rows), ROWS):
            batch = rows[start : start + ROWS]
            lengths = torch.tensor([len(row) for row in batch])
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
            ids = torch.zeros(mask.shape, dtype=torch.long)
            ids[mask] = torch.tensor([token for row in batch for token in row])
            with torch.no_grad():
                hidden = forward(ids.to(device), mask.long().to(device))
            found.append(hidden[torch.arange(len(batch)), lengths - 1].float().cpu())
        return torch.cat(found)


def peak(model: str, questions: int | None, way: str) -> int:
    """Bytes that one way needs at its peak, beyond the model."""
    work = Work(model, questions)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work.ways[way]()
        return torch.cuda.max_memory_allocated() - before
    with torch.no_grad():
        for weight in work.model.parameters():
            weight.sum()
        ids = torch.tensor([work.tokens()[0]])
        work.model(input_ids=ids, output_hidden_states=True)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work.ways[way]()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(name))
    return int(line.split()[1]) * 1024


def peak_elsewhere(options: argparse.Namespace, way: str) -> int:
    command = [sys.executable, __file__, "--model", options.model, "--peak-of", way]
    if options.questions is not None:
        command += ["--questions", str(options.questions)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", default="smollm2", help="as `odesteer.models.loading.load_model`"
    )
    parser.add_argument("--questions", type=int, help="the first so many; all 817")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--only", action="store_true", help="the two ends, not the way between")
    parser.add_argument("--no-memory", action="store_true", help="time alone")
    parser.add_argument("--json", type=Path, help="where every number goes")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(peak(options.model, options.questions, options.peak_of))
        return
    work = Work(options.model, options.questions)
    ways = {k: v for k, v in work.ways.items() if k in (REFERENCE, OURS) or not options.only}
    expected = work.full()
    difference = {
        name: float(((way() - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
        for name, way in ways.items()
        if name != REFERENCE
    }
    # Everything ran once to be compared: that was the warm-up.
    seconds = interleaved(ways, options.repetitions, warmup=0)
    faster = ratios(seconds, REFERENCE)
    memory = {} if options.no_memory else {name: peak_elsewhere(options, name) for name in ways}
    rows = [
        [
            name,
            f"{statistics.median(seconds[name]):.1f}",
            spread(faster[name]),
            f"{memory[name] / 2**20:.0f}" if memory else "",
            f"{memory[name] / memory[REFERENCE]:.2f}" if memory else "",
            f"{difference[name]:.0e}" if name in difference else "",
        ]
        for name in ways
    ]
    head = ["", "seconds", "times faster", "peak MiB", "of the reference", "largest difference"]
    questions = len({example.group for example, _ in work.examples})
    about = (
        f"{len(work.examples)} texts of {questions} questions, "
        f"{options.model}, layer {work.layer} of {len(find_layers(work.model))}, "
        f"{options.repetitions} repetitions; {machine()}"
    )
    print(markdown(head, rows), about, sep="\n\n")
    if options.json is not None:
        result = {"about": about, "seconds": seconds, "faster": faster, "peak": memory}
        options.json.write_text(json.dumps(result | {"difference": difference}, indent=1) + "\n")


if __name__ == "__main__":
    main()
