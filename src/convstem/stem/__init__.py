"""The convolutional stem: its vocabulary, its layer in timm, initialisation, freezing.

Not public: the public names are in ``convstem``.
"""
