"""State dicts: whose keys they have, and how one layout becomes another."""
