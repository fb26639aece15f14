"""Imported by Python at its start, where this folder is on its path: see `tests/deadly.py`."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import deadly

if deadly.VARIABLE in os.environ:
    deadly.install(Path(os.environ[deadly.VARIABLE]))
