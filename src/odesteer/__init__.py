"""odesteer: steer language models by solving an ODE on their activations.

da/dt = v(a), a(0) = a; the steered activation is a(T)

Public names are listed in `__init__.pyi` and imported at first use: torch and scikit-learn take
seconds, and `odesteer --help` needs neither.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
