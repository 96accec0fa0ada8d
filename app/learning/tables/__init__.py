"""Tables: raw files of every format to typed columns, and the file in which a table is stored.

Imports nothing else of the application but its errors. Only this room imports polars. Start at `read_raw_file` for
uploads, at `infer_columns` for the kinds of columns, and at `table_file` for stored tables.
"""
