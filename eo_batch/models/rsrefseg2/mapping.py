"""From the names of the published training's checkpoints to ours, and low-rank updates merged into the weights they belong to.

The training keeps such updates (LoRA, arXiv 2106.09685) beside frozen weights, W + (alpha / r) B A; they are merged in float32.
SAM 2 has the names of its own authors there and those of the transformers library here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from eo_batch.core.errors import ModelError
from eo_batch.models.rsrefseg.mapping import merge, unwrap, widen
from eo_batch.models.rsrefseg2.config import RSRefSeg2Config
from eo_batch.models.weights import check_tensors

_SAM = r"backbone\.model\."
_TRUNK, _NECK = (rf"{_SAM}image_encoder\.base_model\.model\.{part}\." for part in ("trunk", "neck"))
_DECODER, _MASK = rf"{_SAM}sam_mask_decoder\.", rf"{_SAM}sam_prompt_encoder\.mask_downscaling\."
_PLACES = rf"{_SAM}sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix"
_HYPER, _IOU, _THERE = (
    rf"{_DECODER}{part}\.layers\." for part in (r"output_hypernetworks_mlps\.(\d+)", "iou_prediction_head", "pred_obj_score_head")
)

TABLE = (
    (rf"{_TRUNK}patch_embed\.proj\.", "sam.vision_encoder.backbone.patch_embed.projection."),
    (rf"{_TRUNK}blocks\.(\d+)\.norm(\d)\.", r"sam.vision_encoder.backbone.blocks.\1.layer_norm\2."),
    (rf"{_TRUNK}blocks\.(\d+)\.mlp\.layers\.0\.", r"sam.vision_encoder.backbone.blocks.\1.mlp.proj_in."),
    (rf"{_TRUNK}blocks\.(\d+)\.mlp\.layers\.1\.", r"sam.vision_encoder.backbone.blocks.\1.mlp.proj_out."),
    (_TRUNK, "sam.vision_encoder.backbone."),
    (rf"{_NECK}convs\.(\d+)\.conv\.", r"sam.vision_encoder.neck.convs.\1."),
    (rf"{_SAM}no_mem_embed$", "sam.no_memory_embedding"),
    (f"{_PLACES}$", "sam.shared_image_embedding.positional_embedding"),
    (rf"{_MASK}0\.", "sam.prompt_encoder.mask_embed.conv1."),
    (rf"{_MASK}1\.", "sam.prompt_encoder.mask_embed.layer_norm1."),
    (rf"{_MASK}3\.", "sam.prompt_encoder.mask_embed.conv2."),
    (rf"{_MASK}4\.", "sam.prompt_encoder.mask_embed.layer_norm2."),
    (rf"{_MASK}6\.", "sam.prompt_encoder.mask_embed.conv3."),
    (rf"{_DECODER}transformer\.norm_final_attn\.", "sam.mask_decoder.transformer.layer_norm_final_attn."),
    (rf"{_DECODER}transformer\.layers\.(\d+)\.norm(\d)\.", r"sam.mask_decoder.transformer.layers.\1.layer_norm\2."),
    (rf"{_DECODER}transformer\.layers\.(\d+)\.mlp\.layers\.0\.", r"sam.mask_decoder.transformer.layers.\1.mlp.proj_in."),
    (rf"{_DECODER}transformer\.layers\.(\d+)\.mlp\.layers\.1\.", r"sam.mask_decoder.transformer.layers.\1.mlp.proj_out."),
    (rf"{_DECODER}transformer\.(.*)\.out_proj\.", r"sam.mask_decoder.transformer.\1.o_proj."),
    (rf"{_DECODER}output_upscaling\.0\.", "sam.mask_decoder.upscale_conv1."),
    (rf"{_DECODER}output_upscaling\.1\.", "sam.mask_decoder.upscale_layer_norm."),
    (rf"{_DECODER}output_upscaling\.3\.", "sam.mask_decoder.upscale_conv2."),
    (rf"{_HYPER}0\.", r"sam.mask_decoder.output_hypernetworks_mlps.\1.proj_in."),
    (rf"{_HYPER}1\.", r"sam.mask_decoder.output_hypernetworks_mlps.\1.layers.0."),
    (rf"{_HYPER}2\.", r"sam.mask_decoder.output_hypernetworks_mlps.\1.proj_out."),
    (rf"{_IOU}0\.", "sam.mask_decoder.iou_prediction_head.proj_in."),
    (rf"{_IOU}1\.", "sam.mask_decoder.iou_prediction_head.layers.0."),
    (rf"{_IOU}2\.", "sam.mask_decoder.iou_prediction_head.proj_out."),
    (rf"{_THERE}0\.", "sam.mask_decoder.pred_obj_score_head.proj_in."),
    (rf"{_THERE}1\.", "sam.mask_decoder.pred_obj_score_head.layers.0."),
    (rf"{_THERE}2\.", "sam.mask_decoder.pred_obj_score_head.proj_out."),
    (_DECODER, "sam.mask_decoder."),
    (r"clip_vision_encoder\.base_model\.model\.model\.", "encoder.vision_model."),
    (r"clip_text_encoder\.base_model\.model\.model\.", "encoder.text_model."),
    (r"clip_text_encoder\.base_model\.model\.", "encoder."),
    (r"prompter\.text_query_pe_embedding(\d)$", r"prompter.query_places_\1"),
    (r"prompter\.img_pe$", "prompter.patch_places"),
    (r"prompter\.prompt_pe_embedding$", "prompter.prompt_places"),
    (r"prompter\.prompt_embedding$", "prompter.prompts"),
    (r"prompter\.sparse_prompt_mlp\.layers\.0\.", "prompter.sparse.inner."),
    (r"prompter\.sparse_prompt_mlp\.layers\.1\.", "prompter.sparse.outer."),
    (r"prompter\.dense_prompt_conv\.0\.", "prompter.dense_inner."),
    (r"prompter\.dense_prompt_conv\.1\.", "prompter.dense_norm."),
    (r"prompter\.dense_prompt_conv\.3\.", "prompter.dense_outer."),
)
"""Beginning of a name in checkpoints (a pattern) -> of ours; the rest is equal. The first that fits holds."""

BLOCKS = (
    ("two_queries_text_attn_layers", "text_blocks"),
    ("queries1_to_img_attn_layers", "image_blocks"),
    ("prompt_queries2_img_attn_layers", "prompt_blocks"),
)
"""Lists of blocks of the prompter."""

STEPS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "text_blocks": (
        ("own_1", "self_attn_query_query1", "norm_query1_1"),
        ("own_2", "self_attn_query_query2", "norm_query2_1"),
        ("words_1", "cross_attn_query_text_query1_text", "norm_query1_2", "mlp_query1_2", "norm_query1_3"),
        ("words_2", "cross_attn_query_text_query2_text", "norm_query2_2", "mlp_query2_2", "norm_query2_3"),
        ("other_1", "cross_attn_query_query_query1_query2", "norm_query1_4", "mlp_query1_3", "norm_query1_5"),
        ("other_2", "cross_attn_query_query_query2_query1", "norm_query2_4", "mlp_query2_3", "norm_query2_5"),
    ),
    "image_blocks": (
        ("own", "self_attn_text_text_1", "norm_text_1"),
        ("patches", "cross_attn_img_text_1", "norm_img_1", "mlp_img_1", "norm_img_2"),
    ),
    "prompt_blocks": (
        ("own", "self_attn_text_1", "norm_text_1"),
        ("patches", "cross_attn_img_text_1", "norm_img_1", "mlp_img_1", "norm_img_2"),
        ("prompts_own", "self_attn_prompt_1", "norm_prompt_1"),
        ("prompts_queries", "cross_attn_prompt_text_1", "norm_prompt_2", "mlp_prompt_2", "norm_prompt_3"),
        ("prompts_patches", "cross_attn_prompt_img_1", "norm_prompt_4", "mlp_prompt_3", "norm_prompt_5"),
    ),
}
"""Our step, then what the checkpoints call its attention, norm, MLP and the norm after that."""

DEAD = (
    r"decode_head\.logit_(scale|bias)[12]",
    r"clip_vision_encoder\.base_model\.model\.model\.head\..*",
    r"backbone\.model\.sam_prompt_encoder\.(point_embeddings\.\d+|not_a_point_embed|no_mask_embed)\.weight",
)
"""What changes no answer: numbers of the loss, SigLIP's pooling of patches, and SAM's points and missing mask."""

_UPDATE = re.compile(r"(.*)\.(base_layer|lora_A\.default|lora_B\.default)\.(weight|bias)")


def our_name(name: str) -> str | None:
    """Ours for a name of the training's checkpoints; None for what it never writes."""
    block = re.match(r"prompter\.([a-z0-9_]+)\.(\d+)\.([a-z0-9_]+)\.(.*)", name)
    ours = dict(BLOCKS).get(block[1]) if block else None
    if block and ours:
        step = _step(ours, block[3], block[4])
        return f"prompter.{ours}.{block[2]}.{step}" if step else None
    for theirs, replacement in TABLE:
        found = re.match(theirs, name)
        if found:
            return found.expand(replacement) + name[found.end() :]
    return None


def is_dead(name: str) -> bool:
    """Whether a name of the training's checkpoints stands for what changes no answer."""
    return any(re.fullmatch(pattern, name) for pattern in DEAD)


def from_upstream(
    state: Mapping[str, Any], built: Mapping[str, Tensor], config: RSRefSeg2Config, *, where: str
) -> dict[str, Tensor]:
    """Our state dict, float32, from a checkpoint of the training; low-rank updates merged, dead weights left behind.

    Parameters
    ----------
    state : tensors by name; or what holds them under `module` or `state_dict`.
    built : state dict of our network of these sizes, on any device.

    Raises
    ------
    ModelError : `model-load`: with what is missing, unexpected, or of another shape.
    """
    tensors = unwrap(state, where=where)
    made: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        parts = _UPDATE.fullmatch(name)
        if is_dead(f"{parts[1]}.{parts[3]}" if parts else name):
            continue
        if parts is None:
            made[our_name(name) or name] = widen(name, tensor)
        elif parts[2] == "base_layer":
            plain = f"{parts[1]}.{parts[3]}"
            is_matrix = parts[3] == "weight"
            made[our_name(plain) or name] = _merged(tensors, parts[1], config, where=where) if is_matrix else widen(name, tensor)
        elif f"{parts[1]}.base_layer.weight" not in tensors:
            made[name] = tensor  # an update of nothing: told as unexpected
    check_tensors(built, made, where=where)
    return made


def _step(block: str, operation: str, leaf: str) -> str | None:
    for step, *operations in STEPS[block]:
        if operation in operations:
            part = ("attention", "norm", "mlp", "mlp_norm")[operations.index(operation)]
            leaf = leaf.replace("layers.0.", "inner.").replace("layers.1.", "outer.") if part == "mlp" else leaf
            return f"{step}.{part}.{leaf}"
    return None


def _merged(tensors: Mapping[str, Tensor], layer: str, config: RSRefSeg2Config, *, where: str) -> Tensor:
    """A weight with its low-rank update."""
    weight = tensors[f"{layer}.base_layer.weight"]
    down, up = (tensors.get(f"{layer}.lora_{side}.default.weight") for side in "AB")
    rank, rest = config.lora_r, tuple(weight.shape[1:])
    ones = tuple(1 for _ in rest[1:])
    if down is None or up is None or down.shape != (rank, *rest) or up.shape != (weight.shape[0], rank, *ones):
        sizes = " and ".join("none" if part is None else str(tuple(part.shape)) for part in (down, up))
        what, fix = f"has no low-rank update of rank {rank} for {layer}, but {sizes}", "Set lora_r as it was trained."
        raise ModelError("model-load", what, where=where, fix=fix)
    return merge(weight, down, up, config.lora_alpha / rank)
