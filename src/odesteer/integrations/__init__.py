"""Adapters for other people's programs, which import ours."""
