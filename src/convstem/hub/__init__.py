"""Reading from the Hub, verified. Writing is in ``publishing``."""
