"""Artifacts: everything that a version is, as a value and as a folder of files.

Imports `encoding`, `network` and `tables`. Start at `artifact` for the value, at `artifact_files` for the folder.
"""
