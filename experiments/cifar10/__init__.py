"""The trainer that the CIFAR-10 experiments share; all images are in memory."""
