"""Exports CLQ checkpoints to bundles."""

__version__ = "0.1.0"
