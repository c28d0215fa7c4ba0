"""The device in use, the ranks, and what becomes a compiled graph."""
