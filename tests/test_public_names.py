"""Public names: what users import, and nothing that appears or goes unnoticed."""

from importlib import import_module

import pytest

PUBLIC = {
    "odesteer": """
        Angle Assessment CAA Calibration Contrast FourierODESteer GaussianODESteer HPR Handle
        HeadITI ITI KL LinearAcT METHODS Method MiMiC MixtureODESteer NaturalGradient
        NetworkODESteer NoSteering ODESteer OneStepODESteer PaperODESteer PathLength PerRow
        REControl RandomDirection RepE SOLVERS SafetyFilter Sampling Scores Sensitivity
        Shards Steering Target Time TrainedODESteer TransformersBackend TruthFlow Tuned
        activations all_of any_of assess behaviours extract_shards fit guarded load score
        sensitivities tune use_layers write_pairs
    """,
    "odesteer.backends": """
        Backend Sampling TransformersBackend
    """,
    "odesteer.data": """
        Columns Contrast Example behaviours
    """,
    "odesteer.methods": """
        CAA FourierODESteer GaussianODESteer HPR HeadITI ITI LinearAcT METHODS Method MiMiC
        MixtureODESteer NaturalGradient NetworkODESteer NoSteering ODESteer OneStepODESteer
        PaperODESteer REControl RandomDirection RepE SafetyFilter TrainedODESteer TruthFlow
        find_method
    """,
    "odesteer.ode": """
        Adaptive AffineBarrier AndBarrier Angle Barrier Certified ConstantField DOSES Dense
        Dose DoseBatch FormBarrier FourierBarrier GaussianBarrier GivenField GradientField
        GreatCircle Hourglass LinearBarrier MetricBarrier MixtureBarrier ModuleBarrier
        Network NetworkBarrier OrBarrier PathLength PerRow PlainGradientField
        QuadraticBarrier RectifiedField Result RotationField RungeKutta SOLVERS SafetyField
        SketchBarrier Solution Solver Tableau Target Time TransportField VectorField
        Whitening ZeroField as_dose columns_of solve trajectory
    """,
    "odesteer.data.pairs": """
        Trait WrittenPairs write_pairs
    """,
    "odesteer.testing": """
        ARCHITECTURES Adapter Architecture CHECKS Case Check FittedMethod METHOD_CHECKS
        NotOffered OdesteerFlow OdesteerVector POSITIONS Result Steered cases check_method
        conformance load_adapter run table
    """,
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_of_packages_are_those_listed(package):
    module = import_module(package)
    assert sorted(module.__all__) == PUBLIC[package].split()
    assert all(hasattr(module, name) for name in module.__all__)
