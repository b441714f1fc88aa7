"""Vector fields v: the right-hand side of da/dt = v(a)."""
