"""From prompts, labels and seeds to videos."""
