"""SAM 2: the mask of the object in a box (arXiv 2408.00714)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from eo_batch.models.preparation import Preparation, read_preparation
from eo_batch.models.weights.folders import CONFIG, FolderFiles, read_folder
from eo_batch.models.weights.networks import build_network, config_of

PARTS = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
"""What the config says of images; the published files describe a tracker of videos too."""
TRACKER = (
    "memory_",
    "mask_downsample",
    "object_pointer_proj",
    "temporal_positional_encoding_projection_layer",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "occlusion_spatial_embedding_parameter",
)
"""Beginnings of the names of its tensors, which are not used."""
TOGETHER = 8
"""Boxes that are asked in one call: the memory of a call does not grow with what is found."""


def embed(network: Any, pixels: Tensor) -> tuple[Tensor, ...]:
    """What no box changes of windows (n, 3, side, side): maps, fine to coarse."""
    return tuple(network.get_image_embeddings(pixels))


def mask_boxes(network: Any, embeddings: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """Logits of the mask of each box, (box, y, x) at the size that the network gives them.

    Parameters
    ----------
    embeddings : of one window, each (1, channel, y, x).
    boxes : (box, 4), at least one: left, top, right, bottom in pixels of the network's square.
    """
    masks = []
    for some in boxes.split(TOGETHER):
        found = network(image_embeddings=list(embeddings), input_boxes=some[None], multimask_output=False)
        masks.append(found.pred_masks[0, :, 0])
    return torch.cat(masks)


def load_masks(files: FolderFiles) -> tuple[Any, Preparation]:
    """The network of `files` in float32 on the CPU, and how it wants its pictures.

    Raises
    ------
    ModelError : `model-load`.
    """
    from transformers import Sam2Config, Sam2Model

    where = str(files.folder / CONFIG)
    config = config_of(Sam2Config, {name: files.config[name] for name in PARTS if name in files.config}, where=where)
    tensors = {name: tensor for name, tensor in read_folder(files).items() if not name.startswith(TRACKER)}
    network = build_network(Sam2Model, config, tensors, where=where)
    said = {**files.processing, "size": config.prompt_encoder_config.image_size}  # it cannot look at another size
    return network, read_preparation(said, where=str(files.folder))
