"""Training: a specification and a table to a fitted network.

Imports every other room of `learning` but `requests`. Start at `resolve_spec` (what a job will do), `prepare_data` (the
rows) and `fit` (the run). Only `fit`, `optimizer`, `loop` and its parts, and the callbacks import Keras.
"""
