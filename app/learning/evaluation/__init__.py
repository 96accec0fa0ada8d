"""Evaluation: how good a classifier's answers are, from its logits and the true classes.

Imports numpy and nothing else of the application. Start at `evaluate`.
"""
