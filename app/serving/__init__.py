"""Versions put to work: kept in memory, computing predictions and scores, exported as files; and admission, which limits the work.

Imports `records`, `learning` and `system`; knows nothing of HTTP.
Start at `version_cache.VersionCache` and `predictor.LoadedVersion`; `admission.Lane` says which requests start, wait or are refused.
"""
