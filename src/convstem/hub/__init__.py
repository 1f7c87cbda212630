"""Reading from the Hub, verified. Writing is in ``publishing``.

Not public: import public names from ``convstem``.
"""
