"""The files of the page at `/docs`: unchanged, without inline scripts or outside addresses, and no other file is served."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from app.api import docs
from tests.wire import check_problem, exchange, head

STATIC = Path(docs.__file__).parent / "static"
VENDORED = STATIC / "vendor" / "swagger-ui"
OWN_FILES = sorted(path for path in STATIC.iterdir() if path.is_file() and path.name.startswith("docs."))


class Elements(HTMLParser):
    """Collects every element with its attributes, and the text inside script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style") and data.strip():
            self.inline.append(data)


@pytest.fixture
def page() -> Elements:
    return Elements((STATIC / "docs.html").read_text(encoding="utf-8"))


def test_vendored_files_are_those_listed_with_their_digests() -> None:
    text = (VENDORED / "VENDORED.md").read_text(encoding="utf-8")
    listed = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", text, re.MULTILINE)}

    files = [path for path in VENDORED.iterdir() if path.name != "VENDORED.md"]
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert listed == digests
    assert {"LICENSE", "swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png"} <= listed.keys()


def test_the_page_has_no_inline_script_style_or_event_attribute(page: Elements) -> None:
    attributes = [name for _, attributes in page.elements for name in attributes]

    assert not page.inline
    assert not any(tag == "style" for tag, _ in page.elements)
    assert not [name for name in attributes if name == "style" or name.startswith("on")]
    assert all(attributes.get("src") for tag, attributes in page.elements if tag == "script")


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda path: path.name)
def test_our_own_files_name_no_address_outside(path: Path) -> None:
    text = path.read_text(encoding="utf-8")

    assert "://" not in text
    assert not re.search(r"""(?:["'(=]\s*)//""", text)
    assert "@import" not in text


def test_the_vendored_style_sheet_loads_only_data_addresses() -> None:
    text = (VENDORED / "swagger-ui.css").read_text(encoding="utf-8")

    assert {a[:5] for a in re.findall(r"""url\(\s*["']?([^"')]{5})""", text)} == {"data:"}
    assert "@import" not in text


def test_every_address_in_the_page_is_relative_and_answered(page: Elements, http: httpx.Client) -> None:
    addresses = [a[name] for _, a in page.elements for name in ("src", "href") if name in a]

    assert len(addresses) == 6
    for address in addresses:
        assert address is not None
        assert not address.startswith("/")
        assert http.get(f"/{address}").status_code == 200, address


def test_the_script_keeps_no_key_and_asks_no_validator() -> None:
    script = (STATIC / "docs.js").read_text(encoding="utf-8")

    for line in ("persistAuthorization: false", "validatorUrl: null", 'url: "openapi.json"'):
        assert line in script


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/docs", "text/html; charset=utf-8"),
        ("/docs/docs.js", "text/javascript; charset=utf-8"),
        ("/docs/docs.css", "text/css; charset=utf-8"),
        ("/docs/swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
        ("/docs/swagger-ui.css", "text/css; charset=utf-8"),
        ("/docs/favicon-32x32.png", "image/png"),
        ("/favicon.ico", "image/png"),
    ],
)
def test_each_file_has_its_type_and_the_security_headers(
    http: httpx.Client, method: str, path: str, media_type: str
) -> None:
    answer = http.request(method, path)

    assert answer.status_code == 200
    assert answer.headers["content-type"] == media_type
    assert answer.headers["cache-control"] == ("no-cache" if path == "/docs" else "max-age=3600")
    assert [docs.CONTENT_SECURITY_POLICY] == answer.headers.get_list("content-security-policy")
    assert (answer.content == b"") == (method == "HEAD")


def test_a_file_that_the_browser_has_is_not_sent_again(http: httpx.Client) -> None:
    tag = http.get("/docs/swagger-ui.css").headers["etag"]

    again = http.get("/docs/swagger-ui.css", headers={"If-None-Match": f'W/"x", {tag}'})

    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert http.get("/docs/swagger-ui.css", headers={"If-None-Match": '"x"'}).status_code == 200


@pytest.mark.parametrize(
    "path", ["docs.html", "VENDORED.md", "LICENSE", "..%2fdocs.py", "%2e%2e", "vendor", "docs.js%00", "DOCS.JS"]
)
def test_nothing_but_the_listed_files_is_served(http: httpx.Client, path: str) -> None:
    # httpx would normalise the path
    url = str(http.base_url).rstrip("/")

    check_problem(exchange(url, head(url, "GET", f"/docs/{path}")), 404, "not_found")


def test_every_route_of_the_page_is_public_and_not_in_the_schema() -> None:
    routes = [route for route in docs.router.routes if isinstance(route, APIRoute)]

    assert {route.path for route in routes} == {"/docs", "/docs/{name}", "/favicon.ico"}
    assert all(route.openapi_extra == {"security": []} and not route.include_in_schema for route in routes)
