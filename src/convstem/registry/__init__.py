"""What exists, as plain data: architectures, trunks, weights. No torch in this room.

Not public: what is, is imported from ``convstem`` itself.
"""
