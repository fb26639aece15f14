"""A small RemoteSAM, its checkpoint in the wrapping that trainings save, and the table line that publishes it."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import Any

import torch
from formula import remotesam_state

from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig
from eo_batch.models.weights.published import PublishedFile

SMALL = RemoteSAMConfig(
    window_px=64,
    embed_dim=8,
    depths=(1, 1, 1, 1),
    heads=(1, 2, 4, 8),
    swin_window=2,
    mlp_ratio=1,
    cross_heads=2,
    cross_key_dim=4,
    cross_value_dim=4,
    decoder_dim=8,
    vocabulary=40,
    text_dim=8,
    text_layers=1,
    text_heads=2,
    text_ffn_dim=8,
    text_positions=20,
    text_tokens=20,
)
REPO, REVISION = "someone/weights", "a" * 40
WORDS = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nwater\n"


def small_state() -> dict[str, Any]:
    """Formula weights of the small network."""
    return remotesam_state(RemoteSAM.from_config(SMALL, is_trainable=False))


def wrapped(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint as the published training saves it: weights, two moments per weight, schedule, arguments."""
    floating = [tensor for tensor in state.values() if tensor.is_floating_point()]
    moments = {i: {"step": 3.0, "exp_avg": t.clone(), "exp_avg_sq": t.clone()} for i, t in enumerate(floating)}
    groups = [{"lr": 3e-5, "params": list(range(len(floating)))}]
    return {
        "model": state,
        "optimizer": {"state": moments, "param_groups": groups},
        "epoch": 39,
        "args": argparse.Namespace(model="lavt", lr=3e-5, dataset="refer"),
        "lr_scheduler": {"last_epoch": 3, "_last_lr": [3e-5]},
    }


def save(path: Path, checkpoint: Any) -> Path:
    """`checkpoint` as torch.save writes it."""
    torch.save(checkpoint, path)
    return path


def published(path: Path, *, keep_as: str = "", **changes: Any) -> PublishedFile:
    """The table line of a local file."""
    data = path.read_bytes()
    facts = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **changes}
    return PublishedFile("small", REPO, REVISION, path.name, licence="made by a test", source="a test", keep_as=keep_as, **facts)
