"""llama.cpp, as the tests of control vectors load it."""

import importlib.util
import sys

import pytest
from tests.integrations.control_vectors.llama_library import Library


@pytest.fixture(scope="session")
def library() -> Library:
    if sys.platform != "linux":
        pytest.skip("A C++ function of llama.cpp is called as Linux lays it out.")
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("Needs llama.cpp: pip install 'odesteer[llama]'.")
    return Library()
