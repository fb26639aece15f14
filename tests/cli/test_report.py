"""Safe text, tables, and errors that become one line and an exit status."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from toy import make_toy
from typer.testing import CliRunner

from eo_batch.cli.main import app as main
from eo_batch.cli.report import Json, command, plain, print_table
from eo_batch.core.errors import CODES, ConfigError, EoBatchError

HOSTILE = "S2A\x1b]0;owned\x07_\x1b[2J\nINFO all is well\r\u202egnp.exe\x9b31m"


@given(st.text())
def test_printed_text_is_one_line_without_control_characters(text: str) -> None:
    shown = plain(text)
    assert len(shown.splitlines()) <= 1
    assert shown.replace("\u200d", "").isprintable()


def test_escape_codes_stay_visible_and_harmless() -> None:
    shown = plain(HOSTILE)
    assert "\\x1b[2J" in shown
    assert "\\nINFO" in shown
    assert "\\u202e" in shown


@given(st.text(st.characters(categories=["L", "N", "P", "S"])))
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_table_sets_numbers_right_and_words_left(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("water", "9"), ("bare soil", "1,234")], header=("prompt", "km2"))
    assert capsys.readouterr().out.splitlines() == [
        "prompt       km2",
        "---------  -----",
        "water          9",
        "bare soil  1,234",
    ]


def app_that(raises: BaseException | None, *, returns: int | None = None) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @command
    def work(name: Annotated[str, typer.Option()] = "x", json: Json = False) -> int | None:
        if raises is not None:
            raise raises
        return returns

    return app


@pytest.mark.parametrize("code", sorted(CODES))
def test_every_error_code_ends_with_its_exit_status(code: str) -> None:
    error = CODES[code](code, "it failed", where="here", why="because", fix="Do this.")
    answer = CliRunner().invoke(app_that(error), [])
    assert answer.exit_code == CODES[code].codes[code]
    assert answer.stderr == f"{code}: here: it failed: because. Do this.\n"
    assert answer.stdout == ""


def test_an_error_in_json_mode_is_also_one_object_on_stdout() -> None:
    answer = CliRunner().invoke(app_that(ConfigError("config-invalid", "no", fix="Yes.")), ["--json"])
    told = json.loads(answer.stdout)
    assert (told["event"], told["code"], told["exit_status"], told["fix"]) == ("error", "config-invalid", 2, "Yes.")


def test_an_error_text_cannot_forge_a_second_line() -> None:
    answer = CliRunner().invoke(app_that(ConfigError("config-invalid", HOSTILE)), [])
    assert len(answer.stderr.splitlines()) == 1
    assert "\x1b" not in answer.stderr


def test_a_bug_is_one_line_and_a_private_trace_file_without_secrets() -> None:
    error = RuntimeError("read failed: https://host.example/a.tif?sig=TOPSECRET&se=1")
    answer = CliRunner().invoke(app_that(error), [])
    assert answer.exit_code == 1
    (line,) = answer.stderr.splitlines()
    name = re.search(r"`(/.+\.txt)`", line)
    assert name is not None
    trace = Path(name[1])
    text = trace.read_text()
    assert "RuntimeError" in text
    assert "test_report.py" in text
    assert "TOPSECRET" not in text + line
    assert trace.stat().st_mode & 0o077 == 0
    trace.unlink()


def test_traceback_option_prints_the_trace() -> None:
    answer = CliRunner().invoke(app_that(KeyError("lost")), ["--traceback"])
    assert "Traceback (most recent call last)" in answer.stderr


def test_ctrl_c_ends_with_130_and_promises_nothing_by_default() -> None:
    answer = CliRunner().invoke(app_that(KeyboardInterrupt()), [])
    assert (answer.exit_code, answer.stderr) == (130, "interrupted: the same command begins anew\n")


def test_ctrl_c_says_of_a_run_what_is_true_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, out = make_toy(tmp_path / "toy", size=64), tmp_path / "run"

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def interrupt(at: str) -> str:
        with monkeypatch.context() as patch:
            patch.setattr(at, interrupted)
            answer = CliRunner().invoke(main, ["run", str(pipeline), "--out", str(out), "--cluster", "serial"])
        assert answer.exit_code == 130
        return answer.stderr

    assert "nothing is computed yet" in interrupt("eo_batch.run.driver.make_inputs_of")
    assert not (out / "request.json").exists()
    assert f"`eo-batch resume {out}` goes on from there" in interrupt("eo_batch.run.driver.conduct")
    assert CliRunner().invoke(main, ["resume", str(out)]).exit_code == 0


def test_a_returned_number_is_the_exit_status() -> None:
    assert CliRunner().invoke(app_that(None, returns=3), []).exit_code == 3
    assert CliRunner().invoke(app_that(None, returns=0), []).exit_code == 0


def test_a_wrong_option_is_a_configuration_error() -> None:
    assert CliRunner().invoke(app_that(None), ["--nmae", "x"]).exit_code == 2


def test_errors_survive_a_trip_between_processes() -> None:
    import copy

    error = ConfigError("config-invalid", "what", where="where", why="why", fix="Fix.")
    again = copy.copy(error)
    assert isinstance(again, EoBatchError)
    assert (str(again), again.code) == (str(error), error.code)


def test_on_a_narrow_terminal_the_last_column_continues_below_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    item, command_line = "of item " + "x" * 50 + ": gone", "eo-batch resume /a/folder/with/a/long/name"
    print_table([("why", "many words that do not fit beside it"), ("failed", item), ("next", command_line)])
    assert capsys.readouterr().out.splitlines() == [
        "why     many words that do not fit",
        "        beside it",
        "failed  of item",
        "        " + "x" * 50 + ":",
        "        gone",
        f"next    {command_line}",
    ]
