"""State dicts: whose keys they have, and how one layout becomes another.

Not public: what is, is imported from ``convstem`` itself.
"""
