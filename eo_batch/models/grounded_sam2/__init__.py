"""Grounding DINO's boxes into SAM 2: what words name is framed, each frame becomes a mask (arXiv 2303.05499, 2408.00714).

Both networks are those of the transformers library, both under Apache-2.0.
"""
