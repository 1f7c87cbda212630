"""The convolutional stem: its vocabulary, its layer in timm, initialisation, freezing."""
