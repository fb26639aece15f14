from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from servers.cases import item

from eo_batch.core.errors import ConfigError
from eo_batch.core.hrefs import HrefPolicy
from eo_batch.core.spec import parse_catalog
from eo_batch.sources.catalog import find_catalog, known_catalogs

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline folder; the working directory is another one, empty."""
    (tmp_path / "work").mkdir()
    (tmp_path / "pipelines").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "pipelines"


@pytest.mark.parametrize("name", ["earth-search", "planetary-computer", "local"])
def test_packaged_catalogs_are_known_by_name(name: str, elsewhere: Path) -> None:
    spec, where = find_catalog(name, elsewhere)
    assert where.endswith(f"{name}.toml")
    assert Path(where).is_absolute()
    assert spec.title


def test_every_packaged_catalog_is_valid_and_reaches_https_only() -> None:
    for path in sorted((ROOT / "catalogs").glob("*.toml")):
        spec = parse_catalog(path.read_bytes(), where=path.name)
        assert spec.local or spec.url.startswith("https://")
        assert not spec.allow_private
        assert "*" not in spec.asset_hosts


def test_a_catalog_beside_the_pipeline_wins(elsewhere: Path) -> None:
    (elsewhere / "catalogs").mkdir()
    (elsewhere / "catalogs" / "earth-search.toml").write_text('title = "mine"\nurl = "https://example.org"\n')
    assert find_catalog("earth-search", elsewhere)[0].title == "mine"


def test_a_catalog_in_the_working_directory_is_found(elsewhere: Path) -> None:
    (Path.cwd() / "catalogs").mkdir()
    (Path.cwd() / "catalogs" / "here.toml").write_text('title = "here"\nurl = "https://example.org"\n')
    assert find_catalog("here", elsewhere)[0].title == "here"
    assert "here" in known_catalogs(elsewhere)


def test_local_is_the_catalog_in_the_working_directory(elsewhere: Path) -> None:
    spec, _ = find_catalog("local", elsewhere)
    assert (spec.url, spec.root, spec.local) == (str(Path.cwd() / "catalog.json"), str(Path.cwd()), True)


def test_an_unknown_name_gets_a_suggestion_and_the_list(elsewhere: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_catalog("earth-serch", elsewhere)
    assert 'Did you mean "earth-search"?' in str(caught.value)
    assert "earth-search, local, planetary-computer" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://example.org/stac/v1", "api"),
        ("https://example.org/catalog.json", "static"),
        ("https://example.org/items.geojson?v=1", "static"),
        ("https://example.org/items.parquet", "parquet"),
        ("http://127.0.0.1:8000", "api"),
    ],
)
def test_an_address_is_a_catalog(url: str, kind: str, elsewhere: Path) -> None:
    spec, where = find_catalog(url, elsewhere)
    assert (spec.url, spec.kind, where, spec.local) == (url, kind, url, False)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:CANARY@example.org/",
        "https://example.org/?token=CANARY",
        "ftp://example.org/CANARY",
        "https:///x",
        "s3://CANARY/x.json",
    ],
)
def test_addresses_with_credentials_or_other_schemes_are_refused(url: str, elsewhere: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_catalog(url, elsewhere)
    assert "CANARY" not in str(caught.value) or url.startswith(("ftp", "s3"))


def test_a_path_is_looked_for_beside_the_pipeline_then_in_the_working_directory(elsewhere: Path) -> None:
    (Path.cwd() / "items.json").write_text(json.dumps(item()))
    assert find_catalog("items.json", elsewhere)[0].url == str(Path.cwd() / "items.json")
    (elsewhere / "items.json").write_text(json.dumps(item()))
    assert find_catalog("items.json", elsewhere)[0].url == str(elsewhere / "items.json")


def test_a_folder_with_a_catalog_is_a_path_too(elsewhere: Path) -> None:
    (elsewhere / "stac").mkdir()
    (elsewhere / "stac" / "catalog.json").write_text("{}")
    assert find_catalog("stac/", elsewhere)[0].url == str(elsewhere / "stac" / "catalog.json")


def test_a_missing_path_says_where_it_was_looked_for(elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match="looked for") as caught:
        find_catalog("nothing/catalog.json", elsewhere)
    assert str(elsewhere / "nothing" / "catalog.json") in str(caught.value)


def test_a_catalog_by_path_reaches_the_parent_of_its_folder_and_no_further(elsewhere: Path) -> None:
    (elsewhere / "stac").mkdir()
    (elsewhere / "stac" / "catalog.json").write_text("{}")
    policy = HrefPolicy.of(find_catalog("stac/catalog.json", elsewhere)[0])
    assert policy.check(str(elsewhere / "scenes" / "a.tif"))
    with pytest.raises(Exception, match="path-escape"):
        policy.check(str(elsewhere.parent / "a.tif"))


def test_a_catalog_file_can_name_its_root(elsewhere: Path) -> None:
    (elsewhere / "catalogs").mkdir()
    (elsewhere / "catalogs" / "mine.toml").write_text(
        'title = "m"\nurl = "stac/catalog.json"\nkind = "static"\nlocal = true\nroot = "scenes"\n'
    )
    spec = find_catalog("mine", elsewhere)[0]
    assert (spec.url, spec.root) == (str(Path.cwd() / "stac" / "catalog.json"), str(Path.cwd() / "scenes"))


def test_a_broken_catalog_file_names_the_key(elsewhere: Path) -> None:
    (elsewhere / "catalogs").mkdir()
    (elsewhere / "catalogs" / "bad.toml").write_text('title = "m"\nurl = "https://x.org"\nasset_host = []\n')
    with pytest.raises(ConfigError, match='Did you mean "asset_hosts"'):
        find_catalog("bad", elsewhere)


def test_a_catalog_travels_to_workers(elsewhere: Path) -> None:
    spec = find_catalog("planetary-computer", elsewhere)[0]
    assert pickle.loads(pickle.dumps(spec)) == spec
