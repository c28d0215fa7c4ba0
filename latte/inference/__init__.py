"""Sampling: from prompts, class labels and seeds to videos."""
