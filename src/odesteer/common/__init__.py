"""Ground utilities: registries, limits, escaping, jobs."""
