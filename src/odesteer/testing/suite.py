"""The suite as a test file: `pytest --pyargs odesteer.testing.suite --steering-adapter M:C`."""

from odesteer.testing.runner import Case


def test_conformance(conformance_case: Case) -> None:
    conformance_case.check()
