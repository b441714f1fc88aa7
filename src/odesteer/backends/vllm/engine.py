"""A vLLM engine in this process.

with Engine("HuggingFaceTB/SmolLM2-135M-Instruct", {"truthful": steering}) as engine:
    backend = VLLMBackend(engine, tokenizer)

vLLM learns what it steers by when it starts, so an engine is given all steerings that it shall
ever serve; doses and positions come with each prompt. Importing this module does not import vLLM.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from odesteer.backends.vllm.registry import RegisteredSteerings, SteeringRegistry, options
from odesteer.steering import Steering

# How transformers draws where a model's generation config says nothing.
_TOP_K = 50


class Engine:
    """A running `vllm.LLM`; closed by `close` or at the end of a `with` block.

    vLLM starts its engine in a process of its own: in a script, start it below
    `if __name__ == "__main__":`.

    Args:
        model: a local directory or a Hub name.
        steerings: by a name (letters, digits, dots, dashes): objects, or directories that
            `save_pretrained` wrote. Empty: it does not steer.
        check: how much the model must be the one they were fitted on, see
            `odesteer.models.compatibility`.
        settings: more arguments of `vllm.LLM`, such as dtype="float32" or max_model_len=2048.

    Attributes:
        known: its steerings.
        longest: the most tokens of a row, prompt and generation together.
        stops: tokens that end a generation.
        warpers: how tokens are drawn in this model's generation config.

    Raises:
        ImportError: without vLLM.
        ValueError: for a steering that vLLM cannot serve; says which and what to do.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        steerings: Mapping[str, Steering | str | os.PathLike[str]] | None = None,
        *,
        check: str = "architecture",
        **settings: Any,
    ):
        vllm = installed()
        self._llm: Any = None
        # Kept as long as the engine: every process of vLLM reads its steerings there.
        self._folder = tempfile.TemporaryDirectory(prefix="odesteer-")
        try:
            self.stops, self.warpers = _generation(str(model), settings.get("revision") or "main")
            asked: dict[str, Any] = {}
            if steerings:
                asked = options(_written(steerings, Path(self._folder.name)), check=check)
            self.known = RegisteredSteerings(SteeringRegistry.of(asked.get("additional_config")))
            # What the model's own file says of drawing is for each request to say.
            settings = {"generation_config": "vllm", **settings}
            self._llm = vllm.LLM(str(model), **asked, **settings)
        except BaseException:
            self.close()
            raise
        self.longest = int(self._llm.llm_engine.model_config.max_model_len)

    def complete(
        self, rows: Sequence[Sequence[int]], asked: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """What vLLM says to each row of token ids, in one continuous batch.

        Args:
            rows: token ids.
            asked: arguments of `vllm.SamplingParams`, a row.

        Raises:
            ValueError: for a row that is longer than the engine's rows, or a closed engine.
        """
        for row, one in zip(rows, asked, strict=True):
            if len(row) + one["max_tokens"] > self.longest:
                raise ValueError(
                    f"A prompt of {len(row)} tokens and {one['max_tokens']} more do not fit into "
                    f"the engine's {self.longest}: start it with a larger max_model_len."
                )
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        params = [installed().SamplingParams(detokenize=False, **one) for one in asked]
        return self._open.generate(prompts, params, use_tqdm=False) if prompts else []

    def stats(self) -> list[dict[str, Any]]:
        """What was steered since the start: a dict a steering and layer, of one worker.

        Each says `steering`, `layer`, `site`, how many `tokens` it moved, and the sum of how far
        (`displacement`). Ranks of a tensor-parallel group say the same; of pipeline stages each
        has its own layers.
        """
        found: dict[tuple[str, int, str], dict[str, Any]] = {}
        for worker in self._open.collective_rpc("odesteer_stats"):
            for one in worker:
                found.setdefault((one["steering"], one["layer"], one["site"]), one)
        return list(found.values())

    def close(self) -> None:
        """End vLLM's processes and remove what was written for them; again does nothing."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        self._folder.cleanup()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _open(self) -> Any:
        if self._llm is None:
            raise ValueError("This engine was closed: start another.")
        return self._llm


def installed() -> Any:
    """The module vllm.

    Raises:
        ImportError: where it is not; says how to get it.
    """
    try:
        import vllm
    except ImportError:
        raise ImportError(
            "This needs vLLM, in an environment that has odesteer as well: "
            "pip install 'vllm==0.32.0'."
        ) from None
    return vllm


def _written(
    steerings: Mapping[str, Steering | str | os.PathLike[str]], folder: Path
) -> dict[str, str | os.PathLike[str]]:
    """Directories by name; objects are written below `folder`."""
    return {
        # By number: whether a name can be one is for the catalogue to say.
        name: one.save_pretrained(folder / str(i)) if isinstance(one, Steering) else one
        for i, (name, one) in enumerate(steerings.items())
    }


def _generation(model: str, revision: str) -> tuple[list[int], dict[str, Any]]:
    """The tokens at which transformers stops this model, and how it draws.

    vLLM would stop at the tokenizer's end-of-sequence token as well, which is another set.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(model, revision=revision)
    except OSError:
        config = GenerationConfig.from_model_config(
            AutoConfig.from_pretrained(model, revision=revision)
        )
    end = config.eos_token_id
    stops = [] if end is None else [end] if isinstance(end, int) else list(end)
    top_k = _TOP_K if config.top_k is None else config.top_k
    return stops, {"top_k": top_k, "min_p": config.min_p or 0.0}
