"""A vLLM engine in this process.

with Engine("HuggingFaceTB/SmolLM2-135M-Instruct", {"truthful": steering}) as engine:
    backend = VLLMBackend(engine, tokenizer)

vLLM reads its steerings when it starts, so an engine is given all that it will ever serve; doses
and positions come with each prompt. Importing this module does not import vLLM.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from odesteer.backends.vllm.registry import RegisteredSteerings, SteeringRegistry, options
from odesteer.steering import Steering

# The default of transformers, for a model whose generation config has none.
_TOP_K = 50


class Engine:
    """Running `vllm.LLM`; closed by `close` or at the end of a `with` block.

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
        registered: its steerings.
        max_model_len: the most tokens of a row, prompt and generation together.
        stop_token_ids: tokens that end a generation.
        sampling_defaults: sampling parameters of the model's generation config.

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
        vllm = import_vllm()
        self._llm: Any = None
        # Lives as long as the engine: every process of vLLM reads its steerings there.
        self._folder = tempfile.TemporaryDirectory(prefix="odesteer-")
        try:
            revision = settings.get("revision") or "main"
            self.stop_token_ids, self.sampling_defaults = _generation_config(str(model), revision)
            steering: dict[str, Any] = {}
            if steerings:
                steering = options(_save(steerings, Path(self._folder.name)), check=check)
            registry = SteeringRegistry.of(steering.get("additional_config"))
            self.registered = RegisteredSteerings(registry)
            # Each request says how to sample, not the model's generation config.
            settings = {"generation_config": "vllm", **settings}
            self._llm = vllm.LLM(str(model), **steering, **settings)
        except BaseException:
            self.close()
            raise
        self.max_model_len = int(self._llm.llm_engine.model_config.max_model_len)

    def complete(
        self, rows: Sequence[Sequence[int]], params: Sequence[Mapping[str, Any]]
    ) -> list[Any]:
        """Return vLLM's output for each row of token ids, in one continuous batch.

        Args:
            rows: token ids.
            params: arguments of `vllm.SamplingParams` for each row.

        Raises:
            ValueError: for a row that is longer than the engine's rows, or a closed engine.
        """
        for row, each in zip(rows, params, strict=True):
            if len(row) + each["max_tokens"] > self.max_model_len:
                raise ValueError(
                    f"A prompt of {len(row)} tokens and {each['max_tokens']} more do not fit into "
                    f"the engine's {self.max_model_len}: start it with a larger max_model_len."
                )
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        sampling = [import_vllm().SamplingParams(detokenize=False, **each) for each in params]
        return self._running.generate(prompts, sampling, use_tqdm=False) if prompts else []

    def stats(self) -> list[dict[str, Any]]:
        """Return what was steered since the start, a dict for each steering and layer.

        Its keys include `steering`, `layer`, `site`, the number of `tokens` moved, and the sum of
        their `displacement`. Ranks of a tensor-parallel group report the same; each pipeline
        stage has its own layers.
        """
        totals: dict[tuple[str, int, str], dict[str, Any]] = {}
        for worker in self._running.collective_rpc("odesteer_stats"):
            for stats in worker:
                totals.setdefault((stats["steering"], stats["layer"], stats["site"]), stats)
        return list(totals.values())

    def close(self) -> None:
        """End vLLM's processes and remove their files. Calling it again does nothing."""
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
    def _running(self) -> Any:
        if self._llm is None:
            raise ValueError("This engine was closed: start another.")
        return self._llm


def import_vllm() -> Any:
    """Import and return the module vllm.

    Raises:
        ImportError: if it is not installed; says how to get it.
    """
    try:
        import vllm
    except ImportError:
        raise ImportError(
            "This needs vLLM, in an environment that has odesteer as well: "
            "pip install 'vllm==0.32.0'."
        ) from None
    return vllm


def _save(
    steerings: Mapping[str, Steering | str | os.PathLike[str]], folder: Path
) -> dict[str, str | os.PathLike[str]]:
    """Write the steerings that are objects below `folder`, and return directories by name."""
    return {
        # By number: the registry has not checked the names yet.
        name: each.save_pretrained(folder / str(i)) if isinstance(each, Steering) else each
        for i, (name, each) in enumerate(steerings.items())
    }


def _generation_config(model: str, revision: str) -> tuple[list[int], dict[str, Any]]:
    """Return the tokens at which transformers stops this model, and its sampling parameters.

    vLLM would also stop at the tokenizer's end-of-sequence token, which may be another one.
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
