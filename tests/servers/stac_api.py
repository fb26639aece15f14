"""A real STAC API on loopback: stac-fastapi over a list of items in memory.

It shares no code with the search that it tests: boxes are compared as numbers, times as strings of equal form.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

import attr
import cql2
import uvicorn
from shapely.geometry import box, shape
from stac_fastapi.api.app import StacApi
from stac_fastapi.api.models import create_get_request_model, create_post_request_model
from stac_fastapi.extensions import SearchFilterExtension, SortExtension, TokenPaginationExtension
from stac_fastapi.types.config import ApiSettings
from stac_fastapi.types.core import BaseCoreClient
from stac_fastapi.types.errors import NotFoundError
from stac_fastapi.types.search import BaseSearchPostRequest


@attr.s
class MemoryClient(BaseCoreClient):
    """Answers searches over `items`; `announces` says whether pages carry numberMatched."""

    items: Sequence[Mapping[str, Any]] = attr.ib(factory=list)
    announces: bool = attr.ib(default=True)

    def all_collections(self, **kwargs: Any) -> Any:
        names = sorted({str(item["collection"]) for item in self.items})
        return {"collections": [self._collection(name) for name in names], "links": []}

    def get_collection(self, collection_id: str, **kwargs: Any) -> Any:
        if collection_id not in {item["collection"] for item in self.items}:
            raise NotFoundError(collection_id)
        return self._collection(collection_id)

    def get_item(self, item_id: str, collection_id: str, **kwargs: Any) -> Any:
        for item in self.items:
            if (item["collection"], item["id"]) == (collection_id, item_id):
                return item
        raise NotFoundError(item_id)

    def item_collection(self, collection_id: str, limit: int = 10, token: str | None = None, **kwargs: Any) -> Any:
        return self._page({"collections": [collection_id], "limit": limit, "token": token}, kwargs["request"], "GET")

    def get_search(self, **kwargs: Any) -> Any:
        request = kwargs.pop("request")
        query = {key: value for key, value in kwargs.items() if value is not None}
        if isinstance(query.get("intersects"), str):
            query["intersects"] = json.loads(query["intersects"])
        query.pop("filter_lang", None)
        query["filter"] = query.pop("filter_expr", query.get("filter"))
        return self._page(query, request, "GET")

    def post_search(self, search_request: BaseSearchPostRequest, **kwargs: Any) -> Any:
        query = search_request.model_dump(exclude_none=True, mode="json", by_alias=True)
        return self._page(query, kwargs["request"], "POST")

    def _page(self, query: dict[str, Any], request: Any, method: str) -> Any:
        matched = [dict(item) for item in self.items if _matches(item, query)]
        start, limit = int(query.get("token") or 0), int(query.get("limit") or 10)
        page = {"type": "FeatureCollection", "features": matched[start : start + limit], "links": []}
        page["numberReturned"] = len(page["features"])
        if self.announces:
            page["numberMatched"] = len(matched)
        if start + limit < len(matched):
            page["links"] = [_next_link(request, method, query, start + limit)]
        return page

    @staticmethod
    def _collection(name: str) -> dict[str, Any]:
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        return {
            "type": "Collection",
            "id": name,
            "stac_version": "1.1.0",
            "description": name,
            "license": "other",
            "extent": extent,
            "links": [],
        }


def _next_link(request: Any, method: str, query: Mapping[str, Any], start: int) -> dict[str, Any]:
    href = str(request.url).split("?", 1)[0]
    if method == "POST":
        body = {**query, "token": str(start)}
        return {"rel": "next", "type": "application/geo+json", "method": "POST", "href": href, "body": body}
    parameters = {**dict(request.query_params), "token": str(start)}
    return {"rel": "next", "type": "application/geo+json", "method": "GET", "href": f"{href}?{urlencode(parameters)}"}


def _matches(item: Mapping[str, Any], query: Mapping[str, Any]) -> bool:
    if query.get("collections") and item["collection"] not in query["collections"]:
        return False
    if query.get("ids") and item["id"] not in query["ids"]:
        return False
    if query.get("bbox"):
        asked = box(*query["bbox"])
        west, south, east, north = item["bbox"]
        boxes = [box(west, south, east, north)] if west <= east else [box(west, south, 180, north), box(-180, south, east, north)]
        if not any(asked.intersects(one) for one in boxes):
            return False
    if query.get("intersects") and not shape(query["intersects"]).intersects(shape(item["geometry"])):
        return False
    if query.get("datetime") and not _in_period(item, query["datetime"]):
        return False
    if query.get("filter"):
        text = query["filter"]
        expression = cql2.parse_text(text) if isinstance(text, str) else cql2.Expr(text)
        return bool(expression.matches(dict(item)))
    return True


def _in_period(item: Mapping[str, Any], period: Any) -> bool:
    first, _, last = str(period).partition("/") if isinstance(period, str) else (period[0].isoformat(), "", period[1].isoformat())
    properties = item["properties"]
    start = properties.get("datetime") or properties["start_datetime"]
    end = properties.get("datetime") or properties["end_datetime"]
    return (first in ("", "..") or end[:19] >= first[:19]) and (last in ("", "..") or start[:19] <= last[:19])


def make_app(items: Sequence[Mapping[str, Any]], *, announces: bool = True) -> Any:
    """The ASGI application."""
    extensions = [SearchFilterExtension(), SortExtension(), TokenPaginationExtension()]
    get_model = create_get_request_model(extensions)
    post_model = create_post_request_model(extensions)
    client = MemoryClient(items=items, announces=announces, extensions=extensions, landing_page_id="memory")
    return StacApi(
        settings=ApiSettings(enable_response_models=False),
        client=client,
        extensions=extensions,
        search_get_request_model=get_model,
        search_post_request_model=post_model,
    ).app


@contextmanager
def serve_stac(items: Sequence[Mapping[str, Any]], *, announces: bool = True) -> Iterator[str]:
    """Address of a running API over `items`, on 127.0.0.1 and a free port."""
    with serve_app(make_app(items, announces=announces)) as url:
        yield url


@contextmanager
def serve_app(app: Any) -> Iterator[str]:
    """Address of a running ASGI application, on 127.0.0.1 and a free port."""
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    sockets = [config.bind_socket()]
    thread = threading.Thread(target=server.run, kwargs={"sockets": sockets}, daemon=True)
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        host, port = sockets[0].getsockname()
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        for one in sockets:
            one.close()
