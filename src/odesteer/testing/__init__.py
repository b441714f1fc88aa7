"""Checks for steering libraries (conformance suite) and for steering methods.

    from odesteer.testing import Adapter, Steered, conformance

    class Mine(Adapter):
        name = "mine"

        def attach(self, model, layer, vector, positions):
            ...                                     # steer as your users do
            return Steered(model, remove)

    @conformance(Mine())
    def test_conformance(case):
        case.check()

Or without a file: `odesteer conformance --adapter mine.testing:Mine`, or
`pytest --pyargs odesteer.testing.suite --steering-adapter mine.testing:Mine`.

`check_method(Mine())` checks a method, one of odesteer or of another package, see
`odesteer.testing.method_checks`.

Public names are listed in `__init__.pyi` and imported at first use: pytest loads this package in
every session where odesteer is installed.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
