"""RemoteSAM: an image and a sentence in, two logits per pixel out (arXiv 2505.18022).

Only a small part of the image encoder does not know the prompt (about 4 % of the work), and of the prompt only the text
encoder and the keys and values of the fusions do not know the image. `encode_windows` and `encode_text` are these parts;
`decode` is the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eo_batch.core.errors import ModelError
from eo_batch.models.remotesam.config import RemoteSAMConfig
from eo_batch.models.remotesam.decoder import Decoder, enlarge
from eo_batch.models.remotesam.fusion import Words
from eo_batch.models.remotesam.initial import initialise
from eo_batch.models.remotesam.text import TextEncoder
from eo_batch.models.remotesam.trunk import Seen, Trunk


@dataclass(frozen=True)
class PromptFeatures:
    """Prompts as the network needs them, made once for all windows.

    Parameters
    ----------
    words : per prompt, the words of the four stages; first axis 1.
    """

    words: tuple[tuple[Words, ...], ...]

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True)
class ImageFeatures:
    """Windows as the network needs them, made once for all prompts.

    Parameters
    ----------
    windows : per window, what the first stage saw; first axis 1.
    size_yx : (H, W) of the windows in pixels.
    """

    windows: tuple[Seen, ...]
    size_yx: tuple[int, int]

    def __len__(self) -> int:
        return len(self.windows)


class RemoteSAM(nn.Module):
    """The network; keys of its state dict are those of the published checkpoint."""

    def __init__(self, config: RemoteSAMConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Trunk(config)
        self.classifier = Decoder(config)
        self.text_encoder = TextEncoder(config)

    @classmethod
    def from_config(cls, config: RemoteSAMConfig, *, is_trainable: bool = True) -> RemoteSAM:
        """A network of these sizes, in evaluation mode, on the CPU.

        Parameters
        ----------
        is_trainable : give it first weights to train from, from torch's global random state; otherwise its weights hold
            no meaning until others are loaded, which is faster.
        """
        with torch.device("meta"):
            network = cls(config)
        network.to_empty(device="cpu")
        initialise(network, only_buffers=not is_trainable)
        return network.eval()

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, 2, H, W) of B pairs of image and prompt; channel 1 is foreground.

        Parameters
        ----------
        pixels : (B, 3, H, W), red, green, blue, normalised; H and W between `config.smallest_px` and `config.window_px`.
        input_ids, attention_mask : (B, T) int64 tokens, and 1 where there is one, 0 where there is padding.

        Raises
        ------
        ModelError : `model-shape`: a shape the network has no weights for.
        """
        self._check_pixels(pixels)
        self._check_tokens(input_ids, attention_mask)
        if len(pixels) != len(input_ids):
            raise _shape(f"{len(pixels)} images and {len(input_ids)} prompts are no pairs", "Give one prompt for each image.")
        return self._answer(self.backbone.see(pixels), self._words(input_ids, attention_mask), tuple(pixels.shape[2:]))

    @torch.no_grad()
    def encode_text(self, input_ids: Tensor, attention_mask: Tensor) -> PromptFeatures:
        """Features of P prompts; a prompt's do not depend on the others.

        Parameters
        ----------
        input_ids, attention_mask : (P, T) int64 tokens, and 1 where there is one, 0 where there is padding.

        Raises
        ------
        ModelError : `model-shape`.
        """
        self._check_tokens(input_ids, attention_mask)
        pairs = zip(input_ids.split(1), attention_mask.split(1), strict=True)
        return PromptFeatures(tuple(tuple(self._words(ids, mask)) for ids, mask in pairs))

    @torch.no_grad()
    def encode_windows(self, pixels: Tensor) -> ImageFeatures:
        """Features of n windows; a window's do not depend on the others.

        Parameters
        ----------
        pixels : (n, 3, H, W) as in `forward`.

        Raises
        ------
        ModelError : `model-shape`.
        """
        self._check_pixels(pixels)
        return ImageFeatures(tuple(self.backbone.see(window) for window in pixels.split(1)), tuple(pixels.shape[2:]))

    @torch.no_grad()
    def decode(self, images: ImageFeatures, prompts: PromptFeatures) -> Tensor:
        """Logits (n, P, 2, H, W), float32, of every prompt in every window, one pair at a time."""
        rows = [
            torch.cat([self._answer(window, list(words), images.size_yx).float() for words in prompts.words])
            for window in images.windows
        ]
        return torch.stack(rows)

    def _answer(self, seen: Seen, words: list[Words], size_yx: tuple[int, int]) -> Tensor:
        return enlarge(self.classifier(self.backbone(seen, words)), size_yx)

    def _words(self, input_ids: Tensor, attention_mask: Tensor) -> list[Words]:
        return self.backbone.hear(self.text_encoder.hidden(input_ids, attention_mask), attention_mask)

    def _check_pixels(self, pixels: Tensor) -> None:
        low, high = self.config.smallest_px, self.config.window_px
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not all(low <= side <= high for side in pixels.shape[2:]):
            raise _shape(
                f"takes images (n, 3, H, W) with sides of {low} to {high} px, not {tuple(pixels.shape)}",
                f"Cut or resize the image to {high} x {high} px.",
            )

    def _check_tokens(self, input_ids: Tensor, attention_mask: Tensor) -> None:
        tokens = self.config.text_positions
        if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape or input_ids.shape[1] > tokens:
            shapes = f"{tuple(input_ids.shape)} and {tuple(attention_mask.shape)}"
            raise _shape(f"takes tokens and mask (n, T) with T up to {tokens}, not {shapes}", "Give both in the same shape.")


def _shape(what: str, fix: str) -> ModelError:
    return ModelError("model-shape", what, where="RemoteSAM", fix=fix)
