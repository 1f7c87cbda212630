"""One training on CIFAR-10, all images in memory: the trainer that the experiments on CIFAR-10 share."""
