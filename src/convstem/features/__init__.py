"""The conv-stem ViT as a backbone: feature maps of every stride, for segmentation and detection.

Not public: what is, is imported from ``convstem`` itself.
"""
