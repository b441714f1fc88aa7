"""Steering in vLLM, per request: a plugin, and a backend for experiments.

llm = LLM("HuggingFaceTB/SmolLM2-135M-Instruct", **options({"truthful": "path/of/truthful"}))
llm.generate(prompts, SamplingParams(extra_args=ask("truthful", strength=1.0)))
"""

from odesteer.backends.vllm.options import ask, options

__all__ = ["ask", "options"]
