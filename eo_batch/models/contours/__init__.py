"""How likely an outline of an object runs through each pixel of an RGB image: a SegFormer with one logit (DirectSAM).

Touching objects of one mask are parted along this map (`products.components.split_by_contour`). The network is that of the
transformers library (Xie et al., "SegFormer", NeurIPS 2021); the image is squeezed to the network's square and the answer
stretched back, so use it on images or windows, not on scenes.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import digest
from eo_batch.core.errors import ModelError, ResourceError
from eo_batch.models.contours.files import CONFIG, PROCESSING, ContourFiles, find_contours
from eo_batch.models.preparation import SIDES_PX, Preparation, is_count, read_preparation
from eo_batch.models.weights import need_libraries, read_weights
from eo_batch.models.weights.watch import Watch

STAGES = 4
MOST = {
    "depths": 64,
    "hidden_sizes": 4096,
    "num_attention_heads": 64,
    "sr_ratios": 64,
    "patch_sizes": 15,
    "strides": 8,
    "mlp_ratios": 16,
}
"""Lists of a SegFormer's config, one number per stage, and what no number exceeds."""
WIDTHS_HELD = 11
"""Maps of the decoder's width in memory at once, as measured for a SegFormer-B5 at 512 and 1,024 px."""


@dataclass(frozen=True)
class ContourModel:
    """A contour network in memory.

    Parameters
    ----------
    network : transformers.SegformerForSemanticSegmentation, in float32, evaluating.
    preparation : what is done to an image first.
    device : "cpu" or "cuda".
    sha256 : of its weights.
    """

    network: Any
    preparation: Preparation
    device: str
    sha256: str

    @property
    def identity(self) -> str:
        """Digest of all that decides an answer but the device and the number of threads."""
        sizes = [getattr(self.network.config, name) for name in (*MOST, "decoder_hidden_size", "layer_norm_eps")]
        return digest([self.sha256, sizes, asdict(self.preparation)])

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        return sum(tensor.nbytes for tensor in self.network.state_dict().values())

    @property
    def call_bytes(self) -> int:
        """Memory of one call beside that, estimated: the joined maps of the decoder are by far the largest."""
        height, width = self.preparation.size_yx
        config = self.network.config
        return 4 * WIDTHS_HELD * config.decoder_hidden_size * height * width // int(config.strides[0]) ** 2

    def contour(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How likely an outline runs through each pixel, float32 (y, x) in [0, 1]; see `logits`."""
        import torch

        return torch.sigmoid(torch.from_numpy(self.logits(image))).numpy()

    def logits(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """How likely an outline runs through each pixel, float32 (y, x), before the logistic function.

        Parameters
        ----------
        image : uint8 (y, x, 3), red, green, blue.

        Raises
        ------
        ValueError : an array of another kind.
        ModelError : `model-not-finite`.
        """
        import torch

        image = np.ascontiguousarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"an image is uint8 (y, x, 3) with pixels, not {image.dtype} {image.shape}")
        with torch.inference_mode():
            pixels = torch.from_numpy(self.preparation(image)).to(self.device)
            logits = self.network(pixel_values=pixels).logits
            large = torch.nn.functional.interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)
            found: NDArray[np.float32] = large[0, 0].cpu().numpy()
        if not np.isfinite(found).all():
            fix = "Fetch the weights again; weights of a training that diverged cannot be used."
            raise ModelError("model-not-finite", "the contour network gave numbers that are not finite", fix=fix)
        return found


def load_contours(name_or_path: str | os.PathLike[str], *, device: str = "cpu") -> ContourModel:
    """A contour network from files on this machine; see `contour_files` for where they are and how they come here.

    Parameters
    ----------
    name_or_path : a folder as `save_pretrained` of transformers writes it, or "directsam".
    device : "cpu" or "cuda".

    Raises
    ------
    ModelError : `weights-missing`; `model-load`: missing libraries, no such network, keys or shapes that do not agree, numbers
        that are not finite.
    PolicyError : `weights-hash`.
    IntegrityError : `weights-altered`: they changed while they were loaded.
    ResourceError : `no-gpu`.
    """
    need_libraries("torch", "transformers", "safetensors")
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ResourceError("no-gpu", "no GPU is to be had", where="device", fix='Use "cpu".')
    files = find_contours(name_or_path)
    network = _network(files).to(device).eval()
    preparation = read_preparation(files.processing, where=str(files.weights.with_name(PROCESSING)))
    return ContourModel(network, preparation, device, files.sha256)


def _network(files: ContourFiles) -> Any:
    """The network with its weights, float32 on the CPU; every tensor of the file used, none made up."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    where = str(files.weights)
    config = SegformerConfig(**_sizes(files), num_labels=1)
    tensors, _ = read_weights(files.weights)
    with torch.device("meta"):
        expected = sum(tensor.numel() for tensor in SegformerForSemanticSegmentation(config).state_dict().values())
    found = sum(tensor.numel() for tensor in tensors.values())
    if expected != found:
        why = f"{found:,} numbers instead of {expected:,}"
        raise _unfit("the weights are not those of the network in config.json", where=where, why=why)
    single = {  # copies: nobody can change them by writing into the file
        name: tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, tensor in tensors.items()
    }
    Watch(files.weights, files.stamp)  # they are those that the sha256 is of
    for name, tensor in single.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _unfit(f"{name[:100]} holds NaN or infinite numbers", where=where)
    with _quiet():  # it reports in a table what becomes an error here
        try:
            network, report = SegformerForSemanticSegmentation.from_pretrained(
                None, config=config, state_dict=single, dtype=torch.float32, output_loading_info=True
            )
        except RuntimeError as error:  # how the library refuses shapes
            raise _unfit("the weights do not fit the network", where=where, why=" ".join(str(error).split())[:300]) from None
    wrong = {
        kind: sorted(map(str, report[f"{kind}_keys"]))
        for kind in ("missing", "unexpected", "mismatched")
        if report[f"{kind}_keys"]
    }
    if wrong:
        why = "; ".join(f"{len(keys):,} {kind}: {', '.join(keys[:5])}"[:300] for kind, keys in wrong.items())
        raise _unfit("the weights are not those of the network in config.json", where=where, why=why)
    return network


def _sizes(files: ContourFiles) -> dict[str, Any]:
    """What `config.json` says about the network, each number within reason; nothing else of it is used."""
    config, where = files.config, str(files.weights.with_name(CONFIG))
    if config.get("model_type") != "segformer":
        raise _unfit(f"describes a {str(config.get('model_type'))[:50]!r}, not a SegFormer", where=where)
    if config.get("num_channels", 3) != 3 or config.get("num_encoder_blocks", STAGES) != STAGES:
        raise _unfit(f"a contour network has 3 channels and {STAGES} stages", where=where)
    sizes: dict[str, Any] = {}
    for name, most in MOST.items():
        values = config.get(name)
        if not isinstance(values, list) or len(values) != STAGES or not all(is_count(value, most) for value in values):
            raise _unfit(f"{name} is no list of {STAGES} numbers from 1 to {most:,}", where=where)
        sizes[name] = values
    sizes["decoder_hidden_size"] = config.get("decoder_hidden_size")
    if not is_count(sizes["decoder_hidden_size"], MOST["hidden_sizes"]):
        raise _unfit(f"decoder_hidden_size is no number from 1 to {MOST['hidden_sizes']:,}", where=where)
    if any(width % heads for width, heads in zip(sizes["hidden_sizes"], sizes["num_attention_heads"], strict=True)):
        raise _unfit("a stage's width is no multiple of its number of heads", where=where)
    strides, ratios = np.cumprod(sizes["strides"]), np.array(sizes["sr_ratios"])
    if (strides * ratios > SIDES_PX.start).any():
        raise _unfit(f"strides and sr_ratios leave nothing of an image of {SIDES_PX.start} px", where=where)
    if config.get("hidden_act", "gelu") != "gelu" or config.get("reshape_last_stage", True) is not True:
        raise _unfit("only GELU and a reshaped last stage are known", where=where)
    eps = config.get("layer_norm_eps", 1e-6)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise _unfit("layer_norm_eps is no small number", where=where)
    return {**sizes, "layer_norm_eps": eps}


def _unfit(what: str, *, where: str, why: str = "") -> ModelError:
    fix = "Give the folder of a SegFormer with one logit, as its authors published it."
    return ModelError("model-load", what, where=where, why=why, fix=fix)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and reports."""
    from transformers.utils import logging as said

    logger, shows_bars = logging.getLogger("transformers"), said.is_progress_bar_enabled()
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    said.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(before)
        if shows_bars:
            said.enable_progress_bar()
