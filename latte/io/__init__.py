"""Files: atomic writing, videos, MindIR graphs."""
