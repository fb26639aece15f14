"""The whole way of the published weights at their real size: fetch, check, convert, load; and what memory it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from formula import remotesam_state
from models.weights_of_tests import REPO, REVISION, save
from servers.hub import Fault, Hub

from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig
from eo_batch.models.weights import load_strictly, read_weights

FETCH = """
import hashlib, json, sys
from pathlib import Path
from eo_batch.models.weights.checkpoints import find_architecture
from eo_batch.models.weights.hub import fetch
from eo_batch.models.weights.published import PublishedFile

path, folder = Path(sys.argv[1]), Path(sys.argv[2])
with path.open("rb") as file:
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
line = PublishedFile("remotesam", "someone/weights", "a" * 40, path.name, sha256, path.stat().st_size, "a test", "a test")
found = fetch("remotesam", files=(line,), folder=folder)
status = Path("/proc/self/status").read_text()  # of this program alone; ru_maxrss begins with that of the one that started it
peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
print(json.dumps({"weights": str(found.weights), "peak_bytes": peak, "source_sha256": found.source_sha256, "expected": sha256}))
"""


def checkpoint(state: dict[str, torch.Tensor]) -> dict[str, object]:
    """The published wrapping, with two moments for what its training optimised: all but embeddings and two layers of BERT."""
    import argparse

    left_out = ("text_encoder.embeddings.", "text_encoder.encoder.layer.10.", "text_encoder.encoder.layer.11.")
    trained = [t for k, t in state.items() if t.is_floating_point() and not k.startswith(left_out) and ".running_" not in k]
    moments = {i: {"step": 1.0, "exp_avg": torch.zeros_like(t), "exp_avg_sq": torch.zeros_like(t)} for i, t in enumerate(trained)}
    optimizer = {"state": moments, "param_groups": [{"lr": 3e-5, "params": list(range(len(trained)))}]}
    return {
        "model": state,
        "optimizer": optimizer,
        "epoch": 39,
        "args": argparse.Namespace(lr=3e-5),
        "lr_scheduler": {"last_epoch": 39},
    }


LIBRARIES_BYTES = 600_000_000
"""What torch and the libraries of the networks take before anything is loaded, and a little."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_full_size_checkpoint_becomes_the_network_with_memory_for_its_weights_alone(tmp_path: Path, monkeypatch) -> None:
    network = RemoteSAM.from_config(RemoteSAMConfig(), is_trainable=False)
    state = remotesam_state(network)
    path = save(tmp_path / "RemoteSAMv1.pth", checkpoint(state))
    assert 2.5e9 < path.stat().st_size < 2.7e9, "not the size of the published one"
    with Hub() as hub:
        hub.publish(REPO, REVISION, path.name, path)
        hub.script(path.name, Fault("reset", after=1_000_000_000))
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        command = [sys.executable, "-c", FETCH, str(path), str(tmp_path / "w")]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=280)
        ranges = [asked.range for asked in hub.bodies_of(path.name)]
    told = json.loads(said.stdout)
    assert told["source_sha256"] == told["expected"]
    assert len(ranges) == 2
    assert int(ranges[1].removeprefix("bytes=").removesuffix("-")) > 900_000_000
    weights = Path(told["weights"])
    assert 0.970e9 < weights.stat().st_size < 0.972e9
    assert not (tmp_path / "w" / path.name).exists()
    tensors, _ = read_weights(weights)
    load_strictly(network, tensors, where="here")
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert told["peak_bytes"] < weights.stat().st_size + LIBRARIES_BYTES
    path.unlink()  # folders of tests are kept for a while
    weights.unlink()
