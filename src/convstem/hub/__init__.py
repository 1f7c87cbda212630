"""Reading from the Hub, verified. Writing is in ``publishing``.

Not public: what is, is imported from ``convstem`` itself.
"""
