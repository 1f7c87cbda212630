"""The convolutional stem: its vocabulary, its layer in timm, initialisation, freezing.

Not public: import public names from ``convstem``.
"""
