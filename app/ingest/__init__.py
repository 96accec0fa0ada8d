"""From raw files to tables: parser processes, and the large uploads that are parsed after they were answered.

May import records, learning, storage, system and errors. Parser processes, which import polars, know no database: they
run `parser_child`. Start at `parser_process`, which the service talks to; `messages` has what is said.
"""
