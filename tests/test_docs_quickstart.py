"""The shell commands of README.md and of the quickstart run in order, as printed.

They run in one fresh folder that holds what a clone holds, so a command finds only what the
repository or a command before it wrote. Behind the name `smollm2` is a far narrower model: `make
demo` and `test_real_model.py` run SmolLM2 itself. A line that cannot run here is in `ELSEWHERE`,
with what stands for it.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.helpers.paths import REPOSITORY
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from odesteer.cli.app import app
from odesteer.models.loading import local_copy

# In the order in which a newcomer reads them.
PAGES = ("README.md", "docs/start.md")
# Lines that install something, need a network or wait for a browser; and what runs them.
ELSEWHERE = {
    "make demo": ".ci/run",
    "make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu": ".ci/run, from any index",
    "make test": ".ci/run, as `make test-all`",
    "source .venv/bin/activate": "the interpreter of these tests",
    "pip install -c constraints.txt -e '.[playground]'": ".ci/run, with more extras",
    "odesteer playground smollm2 --steering formal=formal": "tests/playground",
}
# Typed into `odesteer chat`, which also reads a pipe.
TYPED = "/angle 0.1\nHow are you?\n/quit\n"
WIDTH = 64


def blocks(page: str, kind: str) -> list[str]:
    """The blocks of a kind on a page."""
    return re.findall(rf"```{kind}\n(.*?)```", (REPOSITORY / page).read_text("utf-8"), re.DOTALL)


def lines(page: str) -> list[str]:
    """The lines of the page's shell blocks, without comments."""
    printed = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in printed]
    return [shlex.join(line) for line in words if line]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with what the repository holds, which is the current one."""
    for name in ("src", "experiments"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ODESTEER_DATA", raising=False)
    return tmp_path


@pytest.fixture
def smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 random blocks on a part of SmolLM2's embeddings, which tell words of two kinds apart."""
    folder = Path(local_copy())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=30,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    with safe_open(folder / "model.safetensors", framework="pt") as file, torch.no_grad():
        embeddings = file.get_slice("model.embed_tokens.weight")[:, :WIDTH]
        model.get_input_embeddings().weight.copy_(embeddings)
        model.model.norm.weight.mul_(10.0)  # as sensitive to a dose as a trained model

    def load(name: str, *_: Any, **__: Any) -> tuple[Any, Any]:
        assert name == "smollm2"
        return model, tokenizer

    monkeypatch.setattr("odesteer.models.loading.load_model", load)


@pytest.mark.slow
def test_the_commands_run_in_order_as_printed(clone: Path, smollm2: None) -> None:
    done = set()
    for page in PAGES:
        for pairs in blocks(page, "jsonl"):
            (clone / "pairs.jsonl").write_text(pairs, encoding="utf-8")
        for line in lines(page):
            if line in done or line in ELSEWHERE:
                continue
            done.add(line)
            program, *words = shlex.split(line)
            if program == "cp":
                shutil.copy(*words)
                continue
            assert program == "odesteer", f"{page}: run '{line}', or say what stands for it"
            result = CliRunner().invoke(app, words, input=TYPED)
            assert result.exit_code == 0, f"{page}: {line}\n{result.output}"
            if "--out" in words:
                assert (clone / words[words.index("--out") + 1]).exists(), line


def test_what_stands_for_a_line_stands_for_one_that_is_printed() -> None:
    assert {*ELSEWHERE} <= {line for page in PAGES for line in lines(page)}
