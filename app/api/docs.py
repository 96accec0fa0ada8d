"""The interactive reference at `/docs`: our page around a vendored Swagger UI, with no word from outside.

Addresses inside the page are relative (`docs/docs.js`, `openapi.json`), so it works behind a path prefix. Needs
`FastAPI(docs_url=None)`: the stock page is inline script and files from a CDN.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse

from app.api.auth import PUBLIC
from app.errors import NotFound

#: for every page of our own; Swagger UI works under it, as it sets styles through the CSSOM only
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
#: for every file of our own pages; `app.http.gate` adds what every answer has
PAGE_HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
_CACHE_SECONDS = 3600
_STATIC = Path(__file__).parent / "static"
_SWAGGER_UI = _STATIC / "vendor" / "swagger-ui"
_PAGE = _STATIC / "docs.html"
#: the only files that leave: name in the address → (file, media type)
FILES = {
    "docs.js": (_STATIC / "docs.js", "text/javascript"),
    "docs.css": (_STATIC / "docs.css", "text/css"),
    "swagger-ui-bundle.js": (_SWAGGER_UI / "swagger-ui-bundle.js", "text/javascript"),
    "swagger-ui.css": (_SWAGGER_UI / "swagger-ui.css", "text/css"),
    "favicon-32x32.png": (_SWAGGER_UI / "favicon-32x32.png", "image/png"),
}

router = APIRouter(include_in_schema=False)


@router.api_route("/docs", methods=["GET", "HEAD"], openapi_extra=PUBLIC)
def get_page(request: Request) -> Response:
    """Answer with the page."""
    return _answer(request, _PAGE, "text/html", "no-cache")


@router.api_route("/docs/{name}", methods=["GET", "HEAD"], openapi_extra=PUBLIC)
def get_file(request: Request, name: str) -> Response:
    """Answer with one of the files that the page is made of."""
    if name not in FILES:
        raise NotFound("file", name)
    return _answer(request, *FILES[name])


@router.api_route("/favicon.ico", methods=["GET", "HEAD"], openapi_extra=PUBLIC)
def get_favicon(request: Request) -> Response:
    """Answer with the icon that browsers ask for unasked; they look at its bytes, a PNG, and not at its name."""
    return _answer(request, *FILES["favicon-32x32.png"])


def _answer(request: Request, path: Path, media_type: str, cache: str = f"max-age={_CACHE_SECONDS}") -> Response:
    """Send a file from disk, or 304 where the browser has it."""
    headers = {**PAGE_HEADERS, "Cache-Control": cache}
    response = FileResponse(path, media_type=media_type, headers=headers, stat_result=path.stat())
    # FileResponse makes the tag and leaves the comparison to others
    if response.headers["ETag"] in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers={**headers, "ETag": response.headers["ETag"]})
    return response
