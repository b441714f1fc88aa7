"""Pytest plugin of the conformance suite.

Loaded by pytest wherever odesteer is installed, so nothing heavy is imported here.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from odesteer.testing.suite.runner import Case
    from odesteer.testing.suite.testbed import Adapter


def conformance(
    *adapters: "Adapter",
    architectures: Iterable[str] | None = None,
    checks: Iterable[str] | None = None,
) -> Any:
    """Decorate a test that takes a `case`, to run once for every case.

    Args:
        adapters: the libraries.
        architectures: names in `ARCHITECTURES`; None is all.
        checks: names in `CHECKS`; None is all.

    Raises:
        ValueError: for a name that is not known.
    """
    return pytest.mark.parametrize("case", _parameters(adapters, architectures, checks))


def _parameters(
    adapters: "Iterable[Adapter]",
    architectures: Iterable[str] | None = None,
    checks: Iterable[str] | None = None,
) -> list[Any]:
    from odesteer.testing.suite.runner import cases

    models = None if architectures is None else list(architectures)
    names = None if checks is None else list(checks)
    # The libraries side by side, so that they share the results of the unsteered model.
    sets = [cases(adapter, models, names) for adapter in adapters]
    every: list[Case] = [case for group in zip(*sets, strict=True) for case in group]
    return [pytest.param(case, id=f"{case.name}-{case.adapter.name}") for case in every]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("odesteer", "conformance of a steering library").addoption(
        "--steering-adapter",
        action="append",
        default=[],
        metavar="MODULE:CLASS",
        help="a library to run pytest --pyargs odesteer.testing.suite on",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    paths = metafunc.config.getoption("--steering-adapter")
    if "conformance_case" not in metafunc.fixturenames:
        return
    from odesteer.testing.suite.runner import load_adapter

    if not paths:
        raise pytest.UsageError("Name the library to test: --steering-adapter MODULE:CLASS.")
    try:
        adapters = [load_adapter(path) for path in paths]
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    metafunc.parametrize("conformance_case", _parameters(adapters))
