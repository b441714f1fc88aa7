"""Barriers h: log density ratios whose gradient is followed."""
