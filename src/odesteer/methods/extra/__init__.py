"""Further barriers of our own: Gaussian, kernel density, network, safety filter."""
