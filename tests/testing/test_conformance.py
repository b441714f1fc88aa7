"""odesteer passes its own conformance suite."""

import pytest

from odesteer.testing import ARCHITECTURES, CHECKS, Case, OdesteerFlow, OdesteerVector, conformance

# Attention, attention in windows, learnt positions, a recurrent state.
KINDS = ("llama", "gemma2", "gpt2", "mamba")
# Laws of the hook and of its handle alone: what a block computes has no part in them. "layers" says
# of every architecture what "moved" says, "meaning" and "removed" what "text" says.
OF_NO_ARCHITECTURE = {
    "moved", "mask", "text", "beams", "sampling", "threads", "exception", "twice", "forgotten",
    "freed", "itself", "two layers", "nested",
}  # fmt: skip
# Compiling one model takes ten times as long as all the other checks of it.
QUICK = [name for name in CHECKS if name != "compile"]


@conformance(OdesteerVector(), architectures=KINDS, checks=QUICK)
def test_a_vector_on_one_architecture_of_each_kind(case: Case) -> None:
    case.check()


@conformance(OdesteerVector(), architectures=["llama"], checks=["compile"])
def test_a_vector_on_a_compiled_model(case: Case) -> None:
    case.check()


class AllOrDefault(OdesteerVector):
    """Positions that need nothing of what the tracker counts, and those that need all of it."""

    positions = ("all", "last+generated")


@pytest.mark.slow
@conformance(
    AllOrDefault(),
    architectures=[name for name in ARCHITECTURES if name not in KINDS],
    checks=[name for name in CHECKS if name not in OF_NO_ARCHITECTURE],
)
def test_a_vector_on_every_other_architecture(case: Case) -> None:
    case.check()


# A hook does not know what moves the activations: the vectors above are the test of the models.
@pytest.mark.slow
@conformance(OdesteerFlow(), architectures=["llama"], checks=QUICK)
def test_a_flow(case: Case) -> None:
    case.check()


@pytest.mark.slow
@conformance(
    OdesteerFlow(), architectures=[name for name in KINDS if name != "llama"], checks=["compile"]
)
def test_a_flow_on_a_compiled_model_of_every_other_kind(case: Case) -> None:
    case.check()
