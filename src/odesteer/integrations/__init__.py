"""Where other people's programs meet a steering: they import ours, never the other way round."""
