"""CLIPSeg: words about pictures, answered by CLIP's two encoders and a small decoder (Lüddecke and Ecker, CVPR 2022)."""
