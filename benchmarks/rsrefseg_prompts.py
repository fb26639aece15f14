"""RSRefSeg: what P prompts over one window cost, against P full forward passes of the same network in the same run.

    python benchmarks/rsrefseg_prompts.py --threads 2
    python benchmarks/rsrefseg_prompts.py --device cuda --precision bfloat16 --batch 8

Each prompt is asked of features that are there already and then in a full pass (image and text encoded anew); these passes and
the encoding of the image take turns, so that a busy machine slows all of them. Weights are random: what the network answers does
not matter here, but both ways must agree. `--size b` is the published size and needs 6 GB of memory; `small` has the same grids
and an eighth of the layers.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from machine import machine

from eo_batch.models.rsrefseg import RSRefSeg, RSRefSegConfig

PROMPTS = (1, 4, 16)
TOKENS = (5, 9)
"""Of the shortest and the longest prompt."""


class Watch:
    """Wall and CPU seconds of calls, one entry each."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def __call__(self, call: Callable[[], Any]) -> Any:
        _wait()
        wall, cpu = time.perf_counter(), time.process_time()
        answer = call()
        _wait()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return answer


def main() -> None:
    """Print seconds, ratios, and how far the two ways differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("b", "small"), default="b")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=max(PROMPTS), help="most prompts")
    parser.add_argument("--passes", type=int, default=max(PROMPTS), help="so many of them are asked in a full pass too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--batch", type=int, default=1, help="windows that are encoded and asked together")
    asked = parser.parse_args()
    if asked.device != "cpu" and not torch.cuda.is_available():
        print(f"no GPU here: nothing measured ({machine()}, torch {torch.__version__})")
        return
    torch.set_num_threads(asked.threads)
    where = torch.cuda.get_device_name() + "; " if asked.device != "cpu" else ""
    print(f"{where}{machine()}; torch {torch.__version__}, {asked.threads} threads; size {asked.size}, {asked.precision}")
    network = build(asked.size)
    network.place(torch.device(asked.device), getattr(torch, asked.precision))
    with torch.inference_mode():
        measure(network, asked.prompts, asked.passes, asked.batch, torch.device(asked.device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    gpu = f", of the GPU {torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if asked.device != "cpu" else ""
    print(f"peak memory of the process {peak:.1f} GB{gpu}")


def build(size: str) -> RSRefSeg:
    """A network with random weights."""
    sizes = RSRefSegConfig.b().as_dict()
    if size == "small":
        sizes["sam"]["vision_config"] |= {"num_hidden_layers": 3, "global_attn_indexes": [2]}
        for half in ("text_config", "vision_config"):
            sizes["siglip"][half]["num_hidden_layers"] = 3
    network = RSRefSeg.from_config(RSRefSegConfig.from_dict(sizes), is_trainable=False).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            is_gain = tensor.ndim == 1 and name.endswith(("weight", "running_var"))
            tensor.fill_(1.0) if is_gain else tensor.normal_(std=0.02, generator=generator)
    return network


def measure(network: RSRefSeg, most: int, passes: int, batch: int, device: torch.device) -> None:
    """Ask in turn and print."""
    generator = torch.Generator().manual_seed(1)
    side = network.config.image_px
    images = torch.rand(batch, 3, side, side, generator=generator).to(device)
    lengths = torch.randint(TOKENS[0], TOKENS[1] + 1, (most,), generator=generator).tolist()
    prompts = [torch.randint(2, network.config.vocabulary, (length,), generator=generator).to(device) for length in lengths]
    encode, text, decode, whole = Watch(), Watch(), Watch(), Watch()
    network.decode(network.encode_images(images), network.encode_prompts(prompts[:1]))  # warm
    differ = 0.0
    for number, ids in enumerate(prompts):
        if number % 4 == 0:
            seen = encode(lambda: network.encode_images(images))
            print(f"encode_images {encode.wall[-1]:.3f} s", flush=True)
        words = text(lambda ids=ids: network.encode_prompts([ids]))
        answer = decode(lambda words=words, seen=seen: network.decode(seen, words))
        if number < passes:
            truth = whole(lambda ids=ids: network(images, [ids] * batch))
            print(f"prompt {number + 1}: full pass {whole.wall[-1]:.3f} s, decode {decode.wall[-1]:.3f} s", flush=True)
            differ = max(differ, float((answer.float() - truth.float()).abs().max()))
    for name, watch in (("encode_images", encode), ("encode_prompts", text), ("decode", decode), ("full pass", whole)):
        spread = f"{min(watch.wall):.3f} to {max(watch.wall):.3f}"
        print(
            f"{name:14}  median {median(watch.wall):.3f} s wall ({spread}), {median(watch.cpu):.3f} s CPU, of {len(watch.wall)}"
        )
    print("encode_prompts is once per run and in no line below but as a part of the full passes")
    for kind in ("wall", "cpu"):
        once, each, full = (median(getattr(watch, kind)) for watch in (encode, decode, whole))
        for count in (count for count in PROMPTS if count <= most):
            ours = once + count * each
            print(
                f"{kind:4} {count:3} prompts: {ours:.3f} s, {ours / (once + each):.3f} x one prompt; "
                f"{count} full passes {count * full:.3f} s, {count * full / ours:.2f} x as long"
                + (f"; {batch / ours:.2f} windows/s" if kind == "wall" else "")
            )
        print(f"{kind:4} each further prompt: {each / (once + each):.4f} x one prompt")
    print(f"largest difference of the two ways {differ:.1e}")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
