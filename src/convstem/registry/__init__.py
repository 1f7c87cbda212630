"""What exists, as plain data: architectures, trunks, weights. No torch in this room.

Not public: the public names are in ``convstem``.
"""
