"""The model classes of both hosts; imported when a model is built.

Not public: the public names are in ``convstem``.
"""
