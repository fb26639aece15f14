"""`python -m eo_batch.cli` is `eo-batch`."""

from eo_batch.cli.main import entry

entry()
