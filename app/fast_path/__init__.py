"""The fast path: plain predictions, answered ahead of the routes without ASGI, FastAPI or a thread for each request.

An optimisation that the setting `fast_path` leaves out: each response is, byte by byte, the response of the route in `api`,
and whatever the fast path does not read goes to the route. Imports `http`, `serving`, `records` and `learning`, never `api`.
Start at `handler.FastPath`, which takes a `Request` from `http_protocol` and returns a `Response`; `batcher` computes.
"""
