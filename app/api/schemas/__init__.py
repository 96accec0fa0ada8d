"""The bodies of the contract, by noun, for validation and for the OpenAPI document.

A model whose name ends in `Out` is an answer; its `of` makes it from what a room returned. `errors` holds the shapes of
errors. These modules may import the rooms' own records and `examples`, and no other module of `api`.
"""
