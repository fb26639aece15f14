"""RemoteSAM on a CPU: this package's way of asking one window against the plain way, in turn, at equal answers.

    python benchmarks/remotesam_speed.py --threads 1

Plain is one whole forward pass per prompt in torch's own operations (tests/plain_remotesam.py): text encoded anew, dead
branches computed, nothing shared between prompts; without the autograd graph and without tokenizers, which would make it
slower. Weights of the published size come from a formula, in float32. Each prompt is asked plainly and then our way; ratios are
plain over ours.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from machine import machine

from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from formula import remotesam_state
from plain_remotesam import PlainRemoteSAM


class Watch:
    """Wall and CPU seconds of calls, added up."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __call__(self, call: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        answer = call()
        self.wall += time.perf_counter() - wall
        self.cpu += time.process_time() - cpu
        return answer


def open_network(weights: Path) -> RemoteSAM:
    """The network with the weights of a file, in this process's own memory."""
    network = RemoteSAM.from_config(RemoteSAMConfig(), is_trainable=False)
    network.load_state_dict(torch.load(weights, weights_only=True), assign=True)
    return network


def make_inputs(prompts: int) -> tuple[Any, Any, Any]:
    """One window of waves and noise, and prompts of 3 to 8 tokens."""
    generator = torch.Generator().manual_seed(1)
    wave = torch.sin(torch.arange(896) / 60)
    pixels = wave * wave[:, None] + 0.4 * torch.randn(1, 3, 896, 896, generator=generator)
    mask = (torch.arange(20) < torch.randint(3, 9, (prompts, 1), generator=generator)).long()
    return pixels, torch.randint(1000, 20000, (prompts, 20), generator=generator) * mask, mask


def peak_of_one_window(weights: Path) -> None:
    """Print the peak memory of this process in megabytes after one window and one prompt; first that after loading."""
    network, (pixels, ids, mask) = open_network(weights), make_inputs(1)
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network.decode(network.encode_windows(pixels), network.encode_text(ids, mask))
    print(loaded / 1e3, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.peak_of:
        peak_of_one_window(chosen.peak_of)
        return
    print(machine(), f"torch {torch.__version__}, {chosen.threads} threads", sep="; ")
    with TemporaryDirectory() as name:
        weights = Path(name) / "weights.pt"
        torch.save(remotesam_state(RemoteSAM.from_config(RemoteSAMConfig(), is_trainable=False)), weights)
        command = [sys.executable, __file__, "--threads", str(chosen.threads), "--peak-of", str(weights)]
        peak = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        network = open_network(weights)
    compare(network, chosen.prompts)
    print(
        f"peak memory of a process for one window and one prompt: {float(peak[1]):.0f} MB ({float(peak[0]):.0f} MB once loaded)"
    )


def compare(network: RemoteSAM, prompts: int) -> None:
    """Ask in turn and print seconds, ratios and how far the answers differ."""
    plain, (pixels, ids, mask) = PlainRemoteSAM(network), make_inputs(prompts)
    image = network.encode_windows(pixels)
    network.decode(image, network.encode_text(ids[:1], mask[:1]))  # warm
    shared, walls, cpus, totals = Watch(), [], [], [0.0] * 4
    image = shared(lambda: network.encode_windows(pixels))
    differ = 0.0
    for number in range(prompts):
        words = ids[number : number + 1], mask[number : number + 1]
        theirs, ours = Watch(), Watch()
        with torch.no_grad():
            truth = theirs(lambda words=words: plain(pixels, *words))
        answer = ours(lambda words=words: network.decode(image, network.encode_text(*words)))
        differ = max(differ, float((truth.argmax(1) != answer[:, 0].argmax(1)).float().mean()))
        walls.append(theirs.wall / (shared.wall + ours.wall))
        cpus.append(theirs.cpu / (shared.cpu + ours.cpu))
        totals = [a + b for a, b in zip(totals, (theirs.wall, ours.wall, theirs.cpu, ours.cpu), strict=True)]
        print(f"prompt {number + 1}: plain {theirs.wall:.2f} s, ours {ours.wall:.2f} s and {shared.wall:.2f} s once per window")
    spread = f"wall {min(walls):.2f} to {max(walls):.2f}"
    print(f"1 prompt: median ratio {median(walls):.2f} wall, {median(cpus):.2f} CPU ({spread})")
    wall, cpu = totals[0] / (shared.wall + totals[1]), totals[2] / (shared.cpu + totals[3])
    print(f"{prompts} prompts: ratio {wall:.2f} wall, {cpu:.2f} CPU; masks differ in at most {differ:.4%} of the pixels")


if __name__ == "__main__":
    main()
