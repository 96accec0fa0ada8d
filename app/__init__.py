"""fitserve: post a table, get a trained and served classifier."""

__version__ = "0.1.0"
