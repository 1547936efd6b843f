"""Trains and evaluates the CLQ detector."""

__version__ = "0.1.0"
