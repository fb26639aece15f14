"""RemoteSAM: one network that answers a sentence about an image with a mask. Architecture: Yao et al. (2025), arXiv 2505.18022."""
