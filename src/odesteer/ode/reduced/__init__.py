"""Quadratic barrier flows solved in k + 1 dimensions."""
