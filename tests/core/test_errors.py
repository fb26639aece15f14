"""Errors: codes, text, exit statuses, and the page that lists them."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from eo_batch.core import errors
from eo_batch.core.errors import CODES, EXIT_STATUS, AssetError, ConfigError, EoBatchError

ROOT = Path(__file__).resolve().parents[2]
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, EoBatchError)]


def test_every_code_of_every_class_is_in_the_table_once():
    codes = [code for kind in KINDS for code in kind.codes]
    assert sorted(codes) == sorted(CODES)
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("code", sorted(CODES))
def test_code_is_readable_and_its_exit_status_documented(code):
    error = CODES[code](code, "it broke")
    assert re.fullmatch(r"[a-z]+(-[a-z]+)+", code)
    assert error.exit_status in EXIT_STATUS
    assert error.exit_status not in (0, 1)


@pytest.mark.parametrize("code", sorted(CODES))
def test_error_survives_a_process_boundary(code):
    error = CODES[code](code, "it broke", where="chunk t0000/y0000_x0000", why="because", fix="Mend it.")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.code, again.what, again.where, again.why, again.fix) == (code, "it broke", error.where, "because", "Mend it.")
    assert str(again) == str(error)


def test_text_says_code_where_what_why_and_fix_in_this_order():
    error = AssetError(
        "asset-forbidden", 'could not read band "nir"', where="chunk t0003/y0012_x0044", why="HTTP 403", fix="Re-sign."
    )
    assert str(error) == 'asset-forbidden: chunk t0003/y0012_x0044: could not read band "nir": HTTP 403. Re-sign.'


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ({}, "config-invalid: it broke."),
        ({"why": "of that."}, "config-invalid: it broke: of that."),
        ({"fix": "Mend it."}, "config-invalid: it broke. Mend it."),
        ({"where": "key x"}, "config-invalid: key x: it broke."),
    ],
)
def test_text_without_some_parts_has_no_loose_punctuation(parts, text):
    assert str(ConfigError("config-invalid", "it broke", **parts)) == text


def test_code_of_another_class_is_a_bug():
    with pytest.raises(AssertionError, match="no code 'disk-full'"):
        ConfigError("disk-full", "it broke")


def test_config_errors_are_value_errors():
    assert issubclass(ConfigError, ValueError)


def test_reference_page_lists_exactly_the_codes_with_their_exit_statuses():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+)[^|]*\| (\d+) \|$", page, flags=re.M)
    assert sorted(rows) == sorted((code, kind.__name__, str(kind.codes[code])) for code, kind in CODES.items())


def test_reference_page_lists_exactly_the_exit_statuses():
    page = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", page, flags=re.M)
    assert {int(status): meaning for status, meaning in rows} == EXIT_STATUS
