"""A steering on disk: written, checked, read, described, sent to the Hub, and compared."""
