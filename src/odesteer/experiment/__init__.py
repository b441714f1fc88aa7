"""An experiment: a TOML file, a plan, and a run directory that survives being killed."""
