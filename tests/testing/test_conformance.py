"""odesteer passes its own conformance suite."""

import pytest

from odesteer.testing import ARCHITECTURES, CHECKS, Case, OdesteerFlow, OdesteerVector, conformance

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
@conformance(OdesteerVector(), architectures=[name for name in ARCHITECTURES if name not in KINDS])
def test_a_vector_on_every_other_architecture(case: Case) -> None:
    case.check()


# A hook does not know what moves the activations: the vectors above are the test of the models.
@pytest.mark.slow
@conformance(OdesteerFlow(), architectures=KINDS)
def test_a_flow_on_one_architecture_of_each_kind(case: Case) -> None:
    case.check()
