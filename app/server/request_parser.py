"""httptools' parser for requests, without changes of protocol."""

from __future__ import annotations

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class RequestParser(HttpRequestParser):
    """Ignores each `Upgrade`, as RFC 9110 (7.8) allows, and refuses CONNECT.

    httptools ends a request at a head with `Upgrade`, and would read the request's body as the next request. Such a head is
    parsed again without its `Upgrade`, by a new parser: the old one reads nothing more.
    """

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        super().__init__(protocol)
        self._protocol = protocol
        # uvicorn answers a request before it reads that there is another one behind it
        self.set_dangerous_leniencies(lenient_data_after_close=True)

    def feed_data(self, data: bytes | memoryview) -> None:  # type: ignore[override]
        """Parse the next bytes of a connection."""
        parser, rest = self, data
        while True:
            try:
                HttpRequestParser.feed_data(parser, rest)
            except HttpParserUpgrade as upgrade:
                if parser.get_method() == b"CONNECT":
                    self._protocol.send_400_response("CONNECT is for proxies.")
                    return
                rest = memoryview(rest)[upgrade.args[0] :]
                parser = parser._without_upgrade()
            else:
                return

    def _without_upgrade(self) -> RequestParser:
        """Parse the last head again, without its `Upgrade`; return the parser that goes on behind it."""
        protocol = self._protocol
        request_line = self.get_method(), protocol.url, self.get_http_version().encode()
        lines = [b"%b: %b\r\n" % header for header in protocol.headers if header[0] != b"upgrade"]
        protocol.parser = parser = RequestParser(protocol)
        HttpRequestParser.feed_data(parser, b"%b %b HTTP/%b\r\n%b\r\n" % (*request_line, b"".join(lines)))
        return parser
