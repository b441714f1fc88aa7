"""Steering in vLLM, per request: a plugin, and a backend for experiments.

llm = LLM("HuggingFaceTB/SmolLM2-135M-Instruct", **options({"truthful": "path/of/truthful"}))
llm.generate(prompts, SamplingParams(extra_args=ask("truthful", strength=1.0)))

with Engine("HuggingFaceTB/SmolLM2-135M-Instruct", {"truthful": steering}) as engine:
    VLLMBackend(engine, tokenizer).generate(prompts, steering.with_strength(0.5))
"""

from odesteer.backends.vllm.backend import VLLMBackend
from odesteer.backends.vllm.engine import Engine
from odesteer.backends.vllm.registry import options
from odesteer.backends.vllm.request import ask

__all__ = ["Engine", "VLLMBackend", "ask", "options"]
