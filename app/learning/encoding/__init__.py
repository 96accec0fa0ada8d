"""Encoding: columns and posted values to the numbers that a network reads, the same for training and prediction.

Imports `tables`, and nothing of networks. Start at `encoder`; `read_cells` is the step before it, from values to
numbers and codes, and `fit_encoder` is how an encoder is learned from a table.
"""
