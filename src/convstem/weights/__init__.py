"""From a weights file to a model's parameters, fast and checked.

Not public: the public names are in ``convstem``.
"""
