"""A checkpoint of RSRefSeg's training becomes a file of this package: its sizes from its tensors, its names by `mapping`.

The rank of the low-rank updates and the number of halvings can be read from the tensors; alpha cannot, and is written down as it
was given, 16 as published otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eo_batch.core.errors import ModelError
from eo_batch.models.rsrefseg.config import RSRefSegConfig
from eo_batch.models.weights import SUFFIX, WeightFiles, find_weights, weights_folder

_THEIRS, _OURS = ("backbone.base_model.model.model.", "prompter_down_spatial."), ("sam.vision_encoder.", "prompter.spatial.")
"""Beginnings of SAM's and the halvings' names in the training's checkpoints, and in ours."""
_OUR_OWN = "prompter.channel.conv.weight"
_LARGE = 1024
"""Channels of SAM ViT-L."""


def build(config: Mapping[str, Any]) -> Any:
    """The network of `config` as torch.nn.Module."""
    from eo_batch.models.rsrefseg.network import RSRefSeg

    return RSRefSeg(RSRefSegConfig.from_dict(config))


def published() -> Mapping[str, Any]:
    """The config of RSRefSeg-b."""
    return RSRefSegConfig.b().as_dict()


def settings_of(tensors: Mapping[str, Any], given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The whole config of a checkpoint: as `given`, else as its tensors show, else as published.

    Raises
    ------
    ConfigError : `config-unknown-key`, `config-invalid`: `given` is no config.
    """
    shown: dict[str, Any] = dict(published())
    sam, spatial = _OURS if _OUR_OWN in tensors else _THEIRS
    position = tensors.get(f"{sam}pos_embed")
    if position is not None and position.shape[-1] == _LARGE:
        shown = RSRefSegConfig.l().as_dict()
    first = tensors.get(f"{sam}layers.0.attn.qkv.lora_A.default.weight")
    if first is not None and first.ndim == 2:
        shown["lora_r"] = first.shape[0]
    layers = {name.removeprefix(spatial).partition(".")[0] for name in tensors if name.startswith(spatial)}
    if layers:
        shown["down_spatial_times"] = len(layers) - 1
    named = dict(given or {})
    if "clip" in named:
        del shown["siglip"]
    return RSRefSegConfig.from_dict({**shown, **named}).as_dict()


def translate(
    tensors: Mapping[str, Any], expected: Mapping[str, Any], settings: Mapping[str, Any], *, where: str
) -> Mapping[str, Any]:
    """Tensors by our names, low-rank updates merged, in float32; what bears our names already only changes its number type.

    Parameters
    ----------
    expected : state dict of our network of these sizes, on any device.
    settings : the whole config.

    Raises
    ------
    ModelError : `model-load`: not such a checkpoint, of other sizes, incomplete.
    """
    from eo_batch.models.rsrefseg.mapping import from_upstream

    if _OUR_OWN in tensors:
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return from_upstream(tensors, expected, RSRefSegConfig.from_dict(settings), where=where)


def find_converted(name: str, named: str, *, absent: str, fix: str) -> WeightFiles:
    """The converted file that an option names, else the one that somebody put where fetched weights would be.

    Parameters
    ----------
    name : of the network.
    named : the option `weights`; may be empty.
    absent, fix : what is said where there is no file, and how one is made.

    Raises
    ------
    ModelError : `weights-missing`, `model-load`: weights of another network.
    """
    own = weights_folder() / name / f"{name}{SUFFIX}"
    if not named and not own.is_file():
        raise ModelError("weights-missing", absent, where=str(own), fix=f"{fix} Put it there, or set model.options.weights.")
    files = find_weights(named or own)
    if files.architecture != name:
        what = f'holds weights of "{files.architecture}", not of "{name}"'
        raise ModelError("model-load", what, where=str(files.weights), fix=fix)
    return files
