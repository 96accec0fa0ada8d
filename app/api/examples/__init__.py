"""Example bodies for the OpenAPI document, by the noun that they are about.

`media` holds the shape of a described body. The schemas and the routes import from here; nothing here imports another
room of `api`. Start reading at `datasets`.
"""
