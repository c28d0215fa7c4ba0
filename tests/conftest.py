"""What every test shares."""

import os

# Before any test imports MindSpore: without this it warns of every optional library that is missing.
os.environ.setdefault("GLOG_v", "3")
