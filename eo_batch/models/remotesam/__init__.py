"""RemoteSAM: one network that answers a sentence about an image with a mask (arXiv 2505.18022)."""
