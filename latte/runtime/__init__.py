"""The device at hand, the ranks, and what becomes a compiled graph."""
