"""Serves CLQ detector bundles over HTTP.  Importing this package imports nothing heavy."""

import os

# ONNX Runtime reports usage to its maker unless this is set before it is imported (Privacy.md in
# its wheel). What runs where, and on what, is its owner's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
