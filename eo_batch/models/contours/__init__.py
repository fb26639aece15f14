"""How likely an outline of an object runs through each pixel of an RGB image: a SegFormer with one logit (DirectSAM).

Touching objects of one mask are parted along this map (`products.components.split_by_contour`). The network is that of the
transformers library (Xie et al., "SegFormer", NeurIPS 2021); the image is squeezed to the network's square and the answer
stretched back, so use it on images or windows, not on scenes.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eo_batch.core.digest import digest
from eo_batch.core.errors import ModelError, ResourceError
from eo_batch.models.preparation import SIDES_PX, Preparation, is_count, read_preparation
from eo_batch.models.weights import need_libraries, regular_file
from eo_batch.models.weights.folders import CONFIG, PROCESSING, FolderFiles, find_folder, read_folder
from eo_batch.models.weights.networks import build_network
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
    """A contour network from files on this machine; see `weights.folders` for where they are and how they come here.

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
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    files = find_contours(name_or_path)
    config = SegformerConfig(**_sizes(files), num_labels=1)
    where = str(files.weights[0])
    network = build_network(SegformerForSemanticSegmentation, config, read_folder(files), where=where, copied=True).to(device)
    Watch((files,))  # they are those that the sha256 is of
    preparation = read_preparation(files.processing, where=str(files.folder / PROCESSING[0]))
    return ContourModel(network, preparation, device, files.weights_sha256)


def find_contours(name_or_path: str | os.PathLike[str]) -> FolderFiles:
    """The files of a contour network on this machine.

    Parameters
    ----------
    name_or_path : a folder with `config.json`, `model.safetensors` and `preprocessor_config.json`; or "directsam" (or its name
        on the hub): the fetched one, if there is exactly one.

    Raises
    ------
    ModelError : `weights-missing`, `model-load`.
    PolicyError : `weights-hash`: a fetched file is not what it was when it was fetched.
    """
    files = find_folder(name_or_path, architecture="segformer")
    if not files.processing:
        regular_file(files.folder / PROCESSING[0])
    return files


def _sizes(files: FolderFiles) -> dict[str, Any]:
    """What `config.json` says about the network, each number within reason; nothing else of it is used."""
    config, where = files.config, str(files.folder / CONFIG)
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


def _unfit(what: str, *, where: str) -> ModelError:
    fix = "Give the folder of a SegFormer with one logit, as its authors published it."
    return ModelError("model-load", what, where=where, fix=fix)
