"""A checkpoint of RSRefSeg 2's training becomes a file of this package: names by `mapping`, sizes as published or as given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eo_batch.models.rsrefseg2.config import RSRefSeg2Config

_UPDATE = "clip_text_encoder.base_model.model.model.head.lora_A.default.weight"
_OURS = "prompter.patch_places"


def build(config: Mapping[str, Any]) -> Any:
    """The network of `config` as torch.nn.Module."""
    from eo_batch.models.rsrefseg2.network import RSRefSeg2

    return RSRefSeg2(RSRefSeg2Config.from_dict(config))


def published() -> Mapping[str, Any]:
    """The config of the published weights."""
    return RSRefSeg2Config().as_dict()


def settings_of(tensors: Mapping[str, Any], given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The whole config of a checkpoint: as `given`, else as published; the rank of its updates is read from its tensors.

    Raises
    ------
    ConfigError : `config-unknown-key`, `config-invalid`: `given` is no config.
    """
    shown = dict(published())
    update = tensors.get(_UPDATE)
    if update is not None and update.ndim == 2:
        shown["lora_r"] = update.shape[0]
    return RSRefSeg2Config.from_dict({**shown, **(given or {})}).as_dict()


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
    from eo_batch.models.rsrefseg2.mapping import from_upstream

    if _OURS in tensors:
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return from_upstream(tensors, expected, RSRefSeg2Config.from_dict(settings), where=where)
