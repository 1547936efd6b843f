"""The serving part of CLQ.  Importing the package itself loads nothing: import its modules."""

__version__ = "0.1.0"
