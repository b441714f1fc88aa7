"""Evaluation: scoring, selection, statistics, benchmarks, judges, experiments, reports."""
