"""Models: loading, decoder blocks, chat templates, hooks and caches."""

import lazy_loader

# Chat templates and data are read by commands that need no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
