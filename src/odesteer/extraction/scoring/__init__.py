"""Scoring of given texts under a steering: log-probabilities, KL, displacement."""
