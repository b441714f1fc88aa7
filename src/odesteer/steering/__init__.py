"""Steerings: maps of activations, composed, saved, loaded, described and attached to models."""

from odesteer.steering.layer_steering import Calibration, LayerSteering
from odesteer.steering.steering import Steering, all_of, any_of, guarded, load

__all__ = ["Calibration", "LayerSteering", "Steering", "all_of", "any_of", "guarded", "load"]
