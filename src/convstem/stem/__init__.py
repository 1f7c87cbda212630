"""The convolutional stem: its vocabulary, its layer in timm, initialisation, freezing.

Not public: what is, is imported from ``convstem`` itself.
"""
