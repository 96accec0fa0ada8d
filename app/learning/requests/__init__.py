"""Requests: the bodies of predictions in every format and protocol, as rows; and the answers of the Open Inference Protocol.

Imports `tables`, whose small parsers the two rooms share, and nothing else of `learning`: no encoder and no network.
Start at `prediction_rows`, the value that every reader returns, and at `read_rows` for the native formats.
"""
