"""State dicts: recognise their layout and convert between layouts.

Not public: import public names from ``convstem``.
"""
