"""Conformance suite as a test file."""

from odesteer.testing.suite.runner import Case


def test_conformance(conformance_case: Case) -> None:
    conformance_case.check()
