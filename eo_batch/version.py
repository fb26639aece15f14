"""The version of the package; `pyproject.toml` states the same, held by a test."""

__version__ = "0.1.0"
