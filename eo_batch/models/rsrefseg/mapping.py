"""From the names of others to ours: checkpoints of the published training code, and foundation models from the hub.

The training keeps low-rank updates (LoRA, arXiv 2106.09685) beside frozen weights, W + (alpha / r) B A. They are merged here, in
float32, so that inference needs nothing of them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from eo_batch.core.errors import ModelError
from eo_batch.models.rsrefseg.config import RSRefSegConfig
from eo_batch.models.weights import check_tensors

TABLE = (
    ("backbone.base_model.model.model.", "sam.vision_encoder."),
    ("backbone.base_model.model.shared_image_embedding.", "sam.shared_image_embedding."),
    ("sam_prompt_encoder.model.", "sam.prompt_encoder."),
    ("sam_mask_decoder.model.", "sam.mask_decoder."),
    ("clip_vision_encoder.base_model.model.model.", "encoder.vision_model."),
    ("clip_text_encoder.base_model.model.model.", "encoder.text_model."),
    ("clip_text_encoder.base_model.model.", "encoder."),
    ("prompter_down_channel.", "prompter.channel."),
    ("prompter_down_spatial.", "prompter.spatial."),
)
"""Beginning of a name in the training's checkpoints -> of ours; the rest is equal. The first that fits holds."""

ADAPTED = (
    r"sam\.vision_encoder\.layers\.\d+\.(attn\.(qkv|proj)|mlp\.lin[12])",
    r"sam\.vision_encoder\.neck\.conv[12]",
    r"encoder\.(vision|text)_model\.encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj",
    r"encoder\.text_model\.head",
    r"encoder\.vision_model\.head\.attention\.out_proj",
)
"""Layers (our names) that carry low-rank updates: their own weights are under `base_layer`."""

HEAD = "encoder.vision_model.head."
"""SigLIP's pooling of patches: in every file, used by nothing, so not built; nor do the updates of its attention do anything."""

COPY, MATRIX = "sam.prompt_encoder.shared_embedding.positional_embedding", "sam.shared_image_embedding.positional_embedding"
"""SAM writes the matrix of its places twice; the copy must be equal, where it is there."""

COUNTER = "num_batches_tracked"
"""End of the names of whole numbers; DeepSpeed's export of a training to float32 writes them as floating ones."""


def our_name(name: str) -> str | None:
    """Ours for a name of the training's checkpoints, as it stands there; None for what it never writes."""
    return next((ours + name.removeprefix(theirs) for theirs, ours in TABLE if name.startswith(theirs)), None)


def their_name(name: str) -> str:
    """Name in the training's checkpoints for one of ours."""
    return next(theirs + name.removeprefix(ours) for theirs, ours in TABLE if name.startswith(ours))


def upstream_shapes(built: Mapping[str, Tensor], config: RSRefSegConfig) -> dict[str, tuple[int, ...]]:
    """Every name and shape of a checkpoint of the training, dead weights included.

    Parameters
    ----------
    built : state dict of our network of these sizes, on any device.
    """
    ours = {name: tuple(tensor.shape) for name, tensor in built.items()} | _head_shapes(config)
    ours[COPY] = ours[MATRIX]
    made: dict[str, tuple[int, ...]] = {}
    for name, shape in ours.items():
        layer, _, leaf = name.rpartition(".")
        if not is_adapted(layer):
            made[their_name(name)] = shape
            continue
        layer = their_name(layer)
        made[f"{layer}.base_layer.{leaf}"] = shape
        if leaf == "weight":
            made[f"{layer}.lora_A.default.weight"] = (config.lora_r, *shape[1:])
            made[f"{layer}.lora_B.default.weight"] = (shape[0], config.lora_r, *(1 for _ in shape[2:]))
    return made


def from_upstream(
    state: Mapping[str, Any], built: Mapping[str, Tensor], config: RSRefSegConfig, *, where: str
) -> dict[str, Tensor]:
    """Our state dict, float32, from a checkpoint of the training; low-rank updates merged, dead weights left behind.

    Parameters
    ----------
    state : tensors by name; or what holds them under `module` or `state_dict`.
    built : state dict of our network of these sizes, on any device.

    Raises
    ------
    ModelError : `model-load`.
    """
    if config.clip is not None:
        fix = "Use a config with siglip."
        raise ModelError("model-load", "checkpoints of the training hold SigLIP, the config has CLIP", where=where, fix=fix)
    tensors = unwrap(state, where=where)
    _compare_sizes(tensors, config, where=where)
    expected = upstream_shapes(built, config)
    may_lack = {name for name in expected if is_dead(name)}
    _check(expected, tensors, {name for name in may_lack if name not in tensors}, where=where)
    copy, matrix = their_name(COPY), their_name(MATRIX)
    if copy in tensors and not torch.equal(tensors[copy].float(), tensors[matrix].float()):
        what = f"{copy} is not the copy of {matrix} that it should be"
        raise ModelError("model-load", what, where=where, fix="Give the checkpoint as the training wrote it.")
    return {name: _take(tensors, name, config) for name in built}


def from_hub(
    encoder: Mapping[str, Tensor], sam: Mapping[str, Tensor], built: Mapping[str, Tensor], *, where: str
) -> dict[str, Tensor]:
    """Our state dict without the prompter, float32, from foundation models as on the Hugging Face hub.

    Parameters
    ----------
    encoder, sam : tensors of SiglipModel (or CLIPModel) and of SamModel, by name.
    built : state dict of our network of these sizes, on any device.

    Raises
    ------
    ModelError : `model-load`.
    """
    found = {f"encoder.{name}": tensor for name, tensor in encoder.items()} | {f"sam.{n}": tensor for n, tensor in sam.items()}
    found = {name: tensor for name, tensor in found.items() if not name.startswith(HEAD) and not name.endswith(".position_ids")}
    copy = found.pop(COPY, None)
    if copy is not None:
        found.setdefault(MATRIX, copy)
    expected = {name: tuple(tensor.shape) for name, tensor in built.items() if not name.startswith("prompter.")}
    _check(expected, found, (), where=where)
    return {name: found[name].to(torch.float32) for name in expected}


def check_count(tensors: Mapping[str, Any], layers: int, *, where: str) -> None:
    """Refuse a file that cannot hold so many layers, before any of them is built.

    Raises
    ------
    ModelError : `model-load`.
    """
    if layers > len(tensors):
        what = f"holds {len(tensors):,} tensors, and the config has {layers:,} layers"
        raise ModelError("model-load", what, where=where, fix="Give the weights and the config that belong together.")


def is_adapted(layer: str) -> bool:
    """Whether a layer, by our name, carries a low-rank update in checkpoints of the training."""
    return any(re.fullmatch(pattern, layer) for pattern in ADAPTED)


def is_dead(name: str) -> bool:
    """Whether a name of the training's checkpoints stands for what changes no answer."""
    ours = our_name(name)
    return ours is not None and (ours.startswith(HEAD) or ours == COPY)


def unwrap(state: Mapping[str, Any], *, where: str) -> Mapping[str, Tensor]:
    """The tensors of a checkpoint by name: alone, or under `module` or `state_dict`.

    Raises
    ------
    ModelError : `model-load`: there are none, or there is something else.
    """
    found: Any = state
    if isinstance(state, Mapping):
        found = next((state[key] for key in ("module", "state_dict") if isinstance(state.get(key), Mapping)), state)
    if not isinstance(found, Mapping) or not found or not all(_is_weight(name, tensor) for name, tensor in found.items()):
        held = ", ".join(sorted(str(key)[:60] for key in found)[:8]) if isinstance(found, Mapping) else type(found).__name__
        fix = "Give tensors by name, or what holds them under `module` or `state_dict`."
        raise ModelError("model-load", "holds no weights by name", where=where, why=f"it holds {held or 'nothing'}", fix=fix)
    return found


def widen(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a checkpoint in float32, a counter of batches in int64."""
    if name.endswith(COUNTER):
        return tensor.to(torch.int64)
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def merge(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """weight + scale * up down, float32 (out, in, ...), of a layer's `lora_A` (rank, in, ...) and `lora_B` (out, rank, ...)."""
    # of a convolution the second one is 1 x 1, so the two are one convolution with the first one's kernel
    update = up.to(torch.float32).flatten(1) @ down.to(torch.float32).flatten(1)
    return weight.to(torch.float32) + scale * update.reshape(weight.shape)


def _take(tensors: Mapping[str, Tensor], name: str, config: RSRefSegConfig) -> Tensor:
    layer, _, leaf = name.rpartition(".")
    if not is_adapted(layer):
        return widen(name, tensors[their_name(name)])
    layer = their_name(layer)
    weight = tensors[f"{layer}.base_layer.{leaf}"]
    if leaf != "weight":
        return widen(name, weight)
    down, up = (tensors[f"{layer}.lora_{side}.default.weight"] for side in "AB")
    return merge(weight, down, up, config.lora_alpha / config.lora_r)


def _is_weight(name: Any, tensor: Any) -> bool:
    return isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout is torch.strided


def _compare_sizes(tensors: Mapping[str, Tensor], config: RSRefSegConfig, *, where: str) -> None:
    """Name the sizes in which a whole checkpoint is of another variant."""
    vision = config.sam["vision_config"]
    sam, spatial = TABLE[0][0], "prompter_down_spatial."
    position, first = tensors.get(f"{sam}pos_embed"), tensors.get(f"{sam}layers.0.attn.qkv.lora_A.default.weight")
    if position is None or first is None or position.ndim != 4 or first.ndim != 2:
        return
    sizes = {
        "layers of SAM": (_count(tensors, f"{sam}layers."), vision["num_hidden_layers"]),
        "channels of SAM": (position.shape[-1], vision["hidden_size"]),
        "px of SAM's input": (position.shape[1] * vision["patch_size"], vision["image_size"]),
        "layers of SigLIP's image half": (
            _count(tensors, "clip_vision_encoder.base_model.model.model.encoder.layers."),
            config.encoder["vision_config"]["num_hidden_layers"],
        ),
        "down_spatial_times": (_count(tensors, spatial) - 1, config.down_spatial_times),
        "lora_r": (first.shape[0], config.lora_r),
    }
    wrong = [f"{name}: {held} in the file, {wanted} in the config" for name, (held, wanted) in sizes.items() if held != wanted]
    if wrong:
        variant = {(12, 768): "b", (24, 1024): "l"}.get((sizes["layers of SAM"][0], sizes["channels of SAM"][0]))
        fix = f"It looks like RSRefSeg-{variant}: RSRefSegConfig.{variant}()." if variant else "Use the config of its training."
        raise ModelError("model-load", "is of another size than the config", where=where, why="; ".join(wrong), fix=fix)


def _count(tensors: Mapping[str, Tensor], start: str) -> int:
    return len({name.removeprefix(start).partition(".")[0] for name in tensors if name.startswith(start)})


def _check(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], without: Collection[str], *, where: str
) -> None:
    """Names and shapes must be the expected ones; floating numbers of any common type."""
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    wanted = {}
    for name, shape in expected.items():
        if name in without:
            continue
        given = tensors[name].dtype if name in tensors else None
        plain = torch.int64 if name.endswith(COUNTER) else torch.float32
        dtype = given if given in kinds else plain
        wanted[name] = torch.empty(shape, dtype=dtype, device="meta")
    check_tensors(wanted, tensors, where=where)


def _head_shapes(config: RSRefSegConfig) -> dict[str, tuple[int, ...]]:
    width, mlp = (config.encoder["vision_config"][key] for key in ("hidden_size", "intermediate_size"))
    shapes = {
        "probe": (1, 1, width),
        "attention.in_proj_weight": (3 * width, width),
        "attention.in_proj_bias": (3 * width,),
        "attention.out_proj.weight": (width, width),
        "attention.out_proj.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
        "mlp.fc1.weight": (mlp, width),
        "mlp.fc1.bias": (mlp,),
        "mlp.fc2.weight": (width, mlp),
        "mlp.fc2.bias": (width,),
    }
    return {HEAD + name: shape for name, shape in shapes.items()}
