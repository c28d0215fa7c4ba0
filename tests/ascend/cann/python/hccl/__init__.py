"""A stand-in for the Python package `hccl` that CANN installs: MindSpore asks it for its version, and for no more."""
