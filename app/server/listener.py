"""The listening socket, and the line that says where it is."""

from __future__ import annotations

import socket

#: connections that may wait to be accepted
BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen on an address.

    Raises:
        OSError: the address cannot be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host} port {port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def announce(listener: socket.socket) -> None:
    """Print where the service is."""
    host, port = listener.getsockname()[:2]
    print(f"fitserve: serving on http://{f'[{host}]' if ':' in host else host}:{port}  docs at /docs", flush=True)
