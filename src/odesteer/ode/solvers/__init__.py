"""Solvers of da/dt = v(a)."""
