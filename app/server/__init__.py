"""The serving process: its socket, uvicorn with our limits on connections, and the work beside the requests.

Imports `api`, `fast_path` and `http`, and opens the services of `wiring`; only `cli` imports this room.
Start at `main.serve`, then `uvicorn_server.Server`; `http_protocol.HttpProtocol` holds the limits of every connection.
"""
