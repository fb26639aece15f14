"""Search in a STAC API: the query, and pages that can be trusted to be all of them.

pystac-client writes the query and knows what a server says it can do; pages are read here, because a search that stops
early, turns in circles or wanders to another server must be an error and not a shorter result.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
import shapely
from pystac import STACError
from pystac_client import Client, ConformanceClasses
from pystac_client.errors import ClientTypeError
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import DoesNotConformTo, PystacClientWarning
from shapely.geometry import mapping

from eo_batch.core.digest import digest
from eo_batch.core.errors import CatalogError, ConfigError
from eo_batch.core.hrefs import HrefPolicy, redact
from eo_batch.core.region import Region
from eo_batch.core.spec import CatalogSpec, PipelineSpec
from eo_batch.sources.access import guard_address
from eo_batch.sources.http import Answer, Http, HttpFailure
from eo_batch.sources.search.found import Found

MAX_PAGES = 100_000
MAX_VERTICES = 400
"""A region with more vertices than this is asked for by its box; its polygon is tested here anyway."""


def read_api(spec: PipelineSpec, catalog: CatalogSpec, *, region: Region, http: Http | None = None) -> Iterator[Found]:
    """Documents that the API gives for each part of the region, page by page.

    Raises
    ------
    CatalogError : `catalog-unreachable`, `catalog-paging`.
    ConfigError : `config-invalid`: the server offers no item search.
    """
    stac_io = _ApiIO(catalog, http or Http())
    client = _open(catalog, stac_io)
    for part, polygon in enumerate(region.parts):
        search = _search(client, spec, catalog, region=region, polygon=polygon)
        parameters = search.get_parameters()
        for feature in _pages(
            stac_io, catalog, str(search.url), str(search.method), parameters, wanted=set(spec.source.collections)
        ):
            yield Found(feature, _base(feature, catalog), part)


class _ApiIO(StacApiIO):
    """Lets pystac-client speak through `Http`, which limits, retries and checks addresses."""

    def __init__(self, catalog: CatalogSpec, http: Http) -> None:
        super().__init__(max_retries=None)
        self.policy = HrefPolicy.of(catalog)
        self.http = http
        self.http.guard = self._guard

    def request(
        self,
        href: str,
        method: str | None = None,
        headers: dict[str, str] | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> str:
        return json.dumps(self.ask(href, method or "GET", parameters, headers).document)

    def ask(
        self, href: str, method: str, parameters: Mapping[str, Any] | None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        if method.upper() == "GET":
            return self.http.json("GET", href, params=parameters, headers=headers)
        return self.http.json(method.upper(), href, body=parameters or {}, headers=headers)

    def _guard(self, url: str) -> None:
        guard_address(url, self.policy)


def _open(catalog: CatalogSpec, stac_io: _ApiIO) -> Client:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DoesNotConformTo)
            warnings.simplefilter("ignore", PystacClientWarning)
            client = Client.open(catalog.url, stac_io=stac_io)
            searches = bool(client.conforms_to(ConformanceClasses.ITEM_SEARCH))
            list(client.get_links("search"))
    except (HttpFailure, APIError, requests.RequestException) as error:
        raise _unreachable(catalog, error, "the landing page") from None
    except (STACError, ClientTypeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise _no_search(catalog, f"the landing page is no STAC catalog ({type(error).__name__})") from None
    if not searches:
        raise _no_search(catalog, "the server does not say that it conforms to item search")
    return client


def _search(client: Client, spec: PipelineSpec, catalog: CatalogSpec, *, region: Region, polygon: Any) -> Any:
    query: dict[str, Any] = {
        "collections": list(spec.source.collections),
        "datetime": f"{region.start:%Y-%m-%dT%H:%M:%SZ}/{region.end:%Y-%m-%dT%H:%M:%SZ}",
        "limit": catalog.page_limit,
        "max_items": None,
        "method": _method(client),
    }
    box = shapely.box(*polygon.bounds)
    if polygon.equals(box) or len(shapely.get_coordinates(polygon)) > MAX_VERTICES:
        query["bbox"] = list(polygon.bounds)
    else:
        query["intersects"] = mapping(polygon)
    if spec.source.filter and client.conforms_to(ConformanceClasses.FILTER):
        query["filter"] = spec.source.filter
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", DoesNotConformTo)
            return client.search(**query)
    except DoesNotConformTo as error:
        raise _no_search(catalog, str(error)) from None


def _method(client: Client) -> str:
    """POST, which has no limit of length, unless the server lists its search links and POST is not among them."""
    methods = {str(link.extra_fields.get("method", "GET")).upper() for link in client.get_links("search")}
    return "POST" if not methods or "POST" in methods else "GET"


def _pages(
    stac_io: _ApiIO, catalog: CatalogSpec, url: str, method: str, parameters: Mapping[str, Any] | None, *, wanted: set[str]
) -> Iterator[Any]:
    """Features of all pages.

    Raises
    ------
    CatalogError : `catalog-paging` where a page repeats, a link leaves the server, foreign items appear, or the number of items
        is not the one that was announced; `catalog-unreachable` where a page cannot be had.
    """
    asked: set[str] = set()
    shown: dict[str, int] = {}
    announced: list[int] = []
    keys: set[tuple[str, str]] = set()
    received = 0
    headers: Mapping[str, str] | None = None
    for number in range(1, MAX_PAGES + 1):
        request = digest([method, url, _plain(parameters)])
        if request in asked:
            raise _paging(catalog, f"page {number} has the address of a page that was read before")
        asked.add(request)
        page = _page(stac_io, catalog, url, method, parameters, headers, number)
        features = page["features"]
        _refuse_foreign(catalog, features, wanted, number)
        names = [(str(f.get("collection")), str(f.get("id"))) for f in features if isinstance(f, dict)]
        content = digest([list(name) for name in names])
        if names and content in shown:
            raise _paging(catalog, f"page {number} repeats page {shown[content]} (item {names[0][1][:100]})")
        shown[content] = number
        keys.update(names)
        received += len(features)
        announced += _announced(page)
        yield from features
        link = _next(page)
        if link is None or (not features and announced and received >= max(announced)):
            _check_count(catalog, announced, received, len(keys))
            return
        url, method, parameters, headers = _follow(catalog, link, url, parameters)
    raise _paging(catalog, f"more than {MAX_PAGES:,} pages")


def _page(
    stac_io: _ApiIO,
    catalog: CatalogSpec,
    url: str,
    method: str,
    parameters: Mapping[str, Any] | None,
    headers: Mapping[str, str] | None,
    number: int,
) -> dict[str, Any]:
    try:
        page = stac_io.ask(url, method, parameters, headers).document
    except requests.RequestException as error:
        raise _unreachable(catalog, error, f"page {number}") from None
    if not isinstance(page, dict) or not isinstance(page.get("features"), list):
        raise _unreachable(catalog, ValueError("the answer is no item collection"), f"page {number}")
    return page


def _refuse_foreign(catalog: CatalogSpec, features: list[Any], wanted: set[str], number: int) -> None:
    """A server that forgets the query on a later page would send the whole archive."""
    for feature in features:
        collection = feature.get("collection") if isinstance(feature, dict) else None
        if isinstance(collection, str) and collection not in wanted:
            what = f'page {number} holds items of collection "{collection[:100]}", which was not asked for'
            raise _paging(catalog, what)


def _next(page: Mapping[str, Any]) -> Mapping[str, Any] | None:
    links = page.get("links")
    for link in links if isinstance(links, list) else []:
        if isinstance(link, dict) and link.get("rel") == "next" and isinstance(link.get("href"), str):
            return link
    return None


def _follow(
    catalog: CatalogSpec, link: Mapping[str, Any], url: str, parameters: Mapping[str, Any] | None
) -> tuple[str, str, Mapping[str, Any] | None, Mapping[str, str] | None]:
    """Request that a `next` link asks for (STAC API, item search, paging: method, body, merge, headers)."""
    target = _encrypted(urljoin(url, str(link["href"])), url)
    if urlsplit(target).netloc.lower() != urlsplit(url).netloc.lower():
        raise _paging(catalog, f'the next page is on another host, "{urlsplit(target).hostname}"')
    headers = {str(k): str(v) for k, v in link["headers"].items()} if isinstance(link.get("headers"), dict) else None
    if str(link.get("method", "GET")).upper() != "POST":
        return target, "GET", None, headers
    body = link.get("body") if isinstance(link.get("body"), dict) else {}
    assert isinstance(body, dict)
    return target, "POST", {**(parameters or {}), **body} if link.get("merge") else body, headers


def _encrypted(target: str, url: str) -> str:
    """`target` with https where `url` has it: a server behind a proxy that ends TLS often does not know its own scheme."""
    here, there = urlsplit(url), urlsplit(target)
    if (here.scheme, there.scheme) == ("https", "http") and here.hostname == there.hostname:
        return there._replace(scheme="https", netloc=here.netloc).geturl()
    return target


def _announced(page: Mapping[str, Any]) -> list[int]:
    context = page.get("context")
    values = [page.get("numberMatched"), context.get("matched") if isinstance(context, dict) else None]
    return [value for value in values if isinstance(value, int) and not isinstance(value, bool)]


def _check_count(catalog: CatalogSpec, announced: list[int], received: int, distinct: int) -> None:
    """The announced number may move while a living catalog is read, and may or may not count an item that comes twice."""
    if not announced or catalog.miscounts:
        return
    if received < min(announced) or distinct > max(announced):
        what = f"{announced[-1]:,} announced, {received:,} received"
        raise _paging(catalog, what, "If this server is known to count wrong, set miscounts = true in its catalog file.")


def _base(feature: Any, catalog: CatalogSpec) -> str:
    """Where relative hrefs of an item start: its own link on the same server, else its place in the API."""
    api = catalog.url.rstrip("/")
    if not isinstance(feature, dict):
        return api
    for link in feature.get("links") or []:
        if isinstance(link, dict) and link.get("rel") == "self" and isinstance(link.get("href"), str):
            target = urljoin(api + "/", link["href"])
            if urlsplit(target).netloc == urlsplit(api).netloc:
                return target
    return f"{api}/collections/{feature.get('collection')}/items/{feature.get('id')}"


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=list))


def _paging(catalog: CatalogSpec, what: str, fix: str = "Try again later, or tell the keeper of the server.") -> CatalogError:
    return CatalogError("catalog-paging", redact(what), where=catalog.title, fix=fix)


def _unreachable(catalog: CatalogSpec, error: Exception, what: str) -> CatalogError:
    fix = "Check the address of the catalog and the network, then try again."
    return CatalogError("catalog-unreachable", what, where=catalog.title, why=redact(error)[:300], fix=fix)


def _no_search(catalog: CatalogSpec, why: str) -> ConfigError:
    fix = 'Use another API, or kind = "static" for a catalog that is only files.'
    return ConfigError("config-invalid", "the catalog cannot be searched", where=catalog.title, why=redact(why), fix=fix)
