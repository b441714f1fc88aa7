"""Experiments: a TOML file, a plan of units, and a resumable run directory."""
