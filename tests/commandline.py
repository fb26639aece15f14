"""Commands of eo-batch in this process, as tests ask them."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from eo_batch.cli.main import app


def invoke(*arguments: object) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of a command in this process."""
    answer = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return answer.exit_code, answer.stdout, answer.stderr


def told(*arguments: object) -> Any:
    """The object that a command prints with --json."""
    status, out, err = invoke(*arguments, "--json")
    assert status == 0, err
    return json.loads(out)
