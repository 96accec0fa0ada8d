"""The interactive reference at `/docs`: our page around a Swagger UI that is shipped with the service.

The page loads nothing from other hosts. Its addresses are relative (`docs/docs.js`, `openapi.json`), so it works behind
a path prefix. The application needs `FastAPI(docs_url=None)`: FastAPI's own page has inline scripts and files from a CDN.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse

from app.api.auth import PUBLIC
from app.errors import NotFound

#: of every page of our own; Swagger UI works with this policy, because it sets styles through the CSSOM only
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
#: headers of every file of our own pages, beside those that `app.http.gate` adds to every answer
PAGE_HEADERS = {"Content-Security-Policy": CONTENT_SECURITY_POLICY}
_CACHE_SECONDS = 3600
_STATIC = Path(__file__).parent / "static"
_SWAGGER_UI = _STATIC / "vendor" / "swagger-ui"
_PAGE = _STATIC / "docs.html"
#: the only files that are served: name in the address → (file, media type)
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
    """Return the page."""
    return _answer(request, _PAGE, "text/html", "no-cache")


@router.api_route("/docs/{name}", methods=["GET", "HEAD"], openapi_extra=PUBLIC)
def get_file(request: Request, name: str) -> Response:
    """Return one of the files that the page consists of."""
    if name not in FILES:
        raise NotFound("file", name)
    return _answer(request, *FILES[name])


@router.api_route("/favicon.ico", methods=["GET", "HEAD"], openapi_extra=PUBLIC)
def get_favicon(request: Request) -> Response:
    """Return the icon that browsers request by themselves. They accept a PNG by its bytes, whatever its name is."""
    return _answer(request, *FILES["favicon-32x32.png"])


def _answer(request: Request, path: Path, media_type: str, cache: str = f"max-age={_CACHE_SECONDS}") -> Response:
    """Return a file, or 304 if the browser has it."""
    headers = {**PAGE_HEADERS, "Cache-Control": cache}
    response = FileResponse(path, media_type=media_type, headers=headers, stat_result=path.stat())
    # FileResponse makes the ETag, but does not compare it
    if response.headers["ETag"] in request.headers.get("If-None-Match", ""):
        return Response(status_code=304, headers={**headers, "ETag": response.headers["ETag"]})
    return response
