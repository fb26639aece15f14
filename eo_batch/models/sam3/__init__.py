"""SAM 3: all objects that a short noun phrase names, with a mask and a confidence each (arXiv 2511.16719).

The network is that of the transformers library; its weights are gated and under a licence of their own.
"""
