"""Does odesteer pass its own conformance suite?"""

import pytest

from odesteer.testing import CHECKS, Case, OdesteerFlow, OdesteerVector, conformance

# Attention, attention in windows, learnt positions, a recurrent state.
KINDS = ("llama", "gemma2", "gpt2", "mamba")
# Compiling one model takes ten times as long as all the other checks of it.
QUICK = [name for name in CHECKS if name != "compile"]


@conformance(OdesteerVector(), architectures=KINDS, checks=QUICK)
def test_a_vector_on_one_architecture_of_each_kind(case: Case) -> None:
    case.check()


@conformance(OdesteerVector(), architectures=["llama"], checks=["compile"])
def test_a_vector_on_a_compiled_model(case: Case) -> None:
    case.check()


@pytest.mark.slow
@conformance(OdesteerVector(), OdesteerFlow())
def test_a_vector_and_a_flow_on_every_architecture(case: Case) -> None:
    case.check()
