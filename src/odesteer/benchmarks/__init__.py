"""Texts to learn from and texts to be judged on."""

from odesteer.benchmarks.data import data_dir
from odesteer.benchmarks.truthfulqa import TruthfulQA

__all__ = ["TruthfulQA", "data_dir"]
