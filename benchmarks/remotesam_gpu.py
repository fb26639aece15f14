"""RemoteSAM on a GPU: windows per second, achieved TFLOP/s and memory, by number type, batch, memory format and torch.compile.

    python benchmarks/remotesam_gpu.py [--batch 8] [--seconds 5]

The network has its published size and random weights: what it answers does not matter here. Where there is no GPU that torch
can use, the command says so and ends.
"""

from __future__ import annotations

import argparse
import time

import torch
from machine import machine

from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig
from eo_batch.models.remotesam.engine import RemoteSAMEngine, place_network
from eo_batch.models.remotesam.network import ImageFeatures, PromptFeatures

TFLOP_PER_ANSWER = 1.37
"""Of one window and one prompt (docs/guides/remotesam.md), a multiplication and an addition counted as two."""
TOKENS = 20
WARM_UP = 3


def main() -> None:
    """Print one line per way to compute."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--batch", type=int, default=8, help="windows of a call in half precision")
    options.add_argument("--seconds", type=float, default=5.0, help="least time of each measurement")
    asked = options.parse_args()
    if not torch.cuda.is_available():
        print(f"no GPU here: nothing measured ({machine()}, torch {torch.__version__})")
        return
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {machine()}")
    print("| numbers | batch | channels last | compiled | windows x prompts / s | TFLOP/s | GPU memory, GB |")
    print("|---|---|---|---|---|---|---|")
    ways = [(torch.float32, 1, False, False)]
    for dtype in (torch.bfloat16, torch.float16):
        ways += [(dtype, asked.batch, last, compiled) for last in (False, True) for compiled in (False, True)]
    for dtype, batch, last, compiled in ways:
        try:
            rate, memory = measure(dtype, batch, asked.seconds, is_last=last, is_compiled=compiled)
            said = f"{rate:.2f} | {rate * TFLOP_PER_ANSWER:.1f} | {memory / 1e9:.1f}"
        except RuntimeError as error:  # out of memory, or a compiler that does not know this GPU: the other ways still count
            said = f"{type(error).__name__}: {str(error).splitlines()[0][:80]} | - | -"
        print(f"| {str(dtype).removeprefix('torch.')} | {batch} | {yes(last)} | {yes(compiled)} | {said} |", flush=True)
        torch.cuda.empty_cache()


def measure(dtype: torch.dtype, batch: int, seconds: float, *, is_last: bool, is_compiled: bool) -> tuple[float, int]:
    """Answers per second as a run asks for them, masks on the host included, and the peak of GPU memory in bytes."""
    engine = make_engine(dtype, is_last=is_last, is_compiled=is_compiled)
    ids = torch.arange(1, TOKENS + 1)
    prompt = engine.encode_sentence(ids, torch.ones_like(ids), threads=1)
    pixels = torch.randn(batch, 3, 896, 896, generator=torch.Generator().manual_seed(0))
    torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        ask(engine, pixels, prompt)
    start, answers = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        ask(engine, pixels, prompt)
        answers += batch
    return answers / (time.perf_counter() - start), torch.cuda.max_memory_allocated()


def ask(engine: RemoteSAMEngine, pixels: torch.Tensor, prompt: PromptFeatures) -> None:
    """One batch, one prompt; the copy to the host waits for the GPU."""
    entries: tuple[ImageFeatures, ...] = engine.encode_pixels(pixels, threads=1)
    for entry in entries:
        engine.answer(entry, prompt, threads=1)


def make_engine(dtype: torch.dtype, *, is_last: bool, is_compiled: bool) -> RemoteSAMEngine:
    """The network of the published size on the GPU."""
    torch.manual_seed(0)
    network = RemoteSAM.from_config(RemoteSAMConfig()).requires_grad_(False)
    device = torch.device("cuda")
    place_network(network, device, dtype)
    if is_last:
        for parameter in network.parameters():
            if parameter.dim() == 4:  # the rotated kernels have five axes, this format has four
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    if is_compiled:
        for stage in network.backbone.layers:
            for block in stage.blocks:
                block.compile()
    return RemoteSAMEngine(network, device, dtype, together=True)


def yes(claim: bool) -> str:
    """A claim as a word."""
    return "yes" if claim else "no"


if __name__ == "__main__":
    main()
