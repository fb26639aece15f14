"""Weights made from key names by a formula, so that a network can be compared number by number without its published weights.

The rule belongs to the reference vectors in the shared folder: standard normal numbers, seeded by the CRC-32 of salt and key,
scaled by what kind of tensor the key names.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

REMOTESAM_SALT = "rsam-dev-8:"


def named_normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Standard normal numbers that depend on the name and the shape only, float64, C order."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)


def remotesam_value(key: str, shape: tuple[int, ...], salt: str = REMOTESAM_SALT) -> NDArray[np.float32]:
    """The formula's value of one floating tensor of RemoteSAM, float32."""
    n, leaf = named_normal(salt + key, shape), key.rpartition(".")[2]
    if leaf == "running_var":
        return (1 + 0.1 * np.abs(n)).astype(np.float32)
    if leaf == "running_mean":
        return (0.1 * n).astype(np.float32)
    if len(shape) == 1:
        return (1 + 0.1 * n if leaf == "weight" else 0.05 * n).astype(np.float32)
    fan = np.prod(shape[2:] if len(shape) == 5 else shape[1:])
    return (_gain(key) * n / np.sqrt(fan)).astype(np.float32)


def remotesam_state(module: Any, salt: str = REMOTESAM_SALT) -> dict[str, Any]:
    """State dict for `module`: every floating tensor by the formula, every integer tensor as built."""
    import torch

    state: Mapping[str, Any] = module.state_dict()
    return {
        key: torch.from_numpy(remotesam_value(key, tuple(value.shape), salt)) if value.is_floating_point() else value.clone()
        for key, value in state.items()
    }


def rsrefseg_value(key: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """The formula's value of one floating tensor of a checkpoint of RSRefSeg, float32."""
    if key == "sam_prompt_encoder.model.shared_embedding.positional_embedding":  # a copy
        key = "backbone.base_model.model.shared_image_embedding.positional_embedding"
    n = named_normal(f"{seed}:{key}", shape)
    if key.endswith("positional_embedding"):
        return n.astype(np.float32)
    if key.endswith("logit_scale"):
        return (3.5 + 0.1 * n).astype(np.float32)
    if key.endswith("logit_bias"):
        return (0.1 * n - 1).astype(np.float32)
    if key.endswith("running_var"):
        return (1 + 0.1 * np.abs(n)).astype(np.float32)
    if len(shape) >= 2 and not key.endswith("pos_embed"):
        return (n / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
    return (1 + 0.1 * n if key.endswith("weight") else 0.1 * n).astype(np.float32)


def rsrefseg_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, Any]:
    """A checkpoint of RSRefSeg in the layout of its training, from names and shapes."""
    import torch

    counter = torch.tensor(0)
    return {
        key: counter.clone() if key.endswith("num_batches_tracked") else torch.from_numpy(rsrefseg_value(key, tuple(shape), seed))
        for key, shape in shapes.items()
    }


def waves(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """The picture (height, width, 3) of a seed: waves and a disc."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    made = []
    for c in range(3):
        v = np.sin(0.071 * (c + 1) * x + 0.013 * seed) + np.cos(0.053 * (c + 2) * y - 0.029 * seed)
        v += np.sin(0.0019 * (seed + 3) * (x - 0.5 * width) * (y - 0.5 * height) / np.sqrt(height * width) * 8 + c)
        inside = (x - width * (0.3 + 0.05 * c)) ** 2 + (y - height * (0.6 - 0.07 * c)) ** 2 < (0.18 * min(height, width)) ** 2
        made.append(np.clip(np.floor(127.5 + 42 * (v + 1.2 * inside)), 0, 255))
    return np.stack(made, axis=-1).astype(np.uint8)


def _gain(key: str) -> float:
    if key == "classifier.conv1_1.weight":
        return 3.0
    if key.startswith("text_encoder."):
        return 0.3 if key.endswith(".attention.output.dense.weight") else 3.0 if key.endswith(".word_embeddings.weight") else 1.0
    return 2.0 if ".f_key." in key or ".visual_residual." in key else 1.0
