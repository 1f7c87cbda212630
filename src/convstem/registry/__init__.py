"""What exists, as plain data: architectures, trunks, weights. No torch in this room.

Not public: import public names from ``convstem``.
"""
