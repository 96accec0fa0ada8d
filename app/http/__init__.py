"""What the routes of `api` and the fast path share about HTTP: the gate of every request, errors, policy, bodies of responses.

Imports `serving`, `records` and `learning`, and Starlette's responses; has no route, and imports neither FastAPI nor uvicorn.
Start at `gate.RequestGate`, which every request passes, and at `problems`, which has the status of each error.
"""
