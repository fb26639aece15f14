"""The network at a small size: against its plain twin, in parts, in batches, in training, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from formula import remotesam_state
from plain_remotesam import PlainRemoteSAM

from eo_batch.core.errors import ConfigError, ModelError
from eo_batch.models.arithmetic import plain_arithmetic
from eo_batch.models.remotesam import RemoteSAM, RemoteSAMConfig

SMALL = RemoteSAMConfig(
    window_px=128,
    embed_dim=16,
    depths=(2, 1, 2, 1),
    heads=(1, 2, 4, 8),
    swin_window=6,
    mlp_ratio=2,
    cross_heads=2,
    cross_key_dim=8,
    cross_value_dim=16,
    decoder_dim=32,
    vocabulary=50,
    text_dim=24,
    text_layers=2,
    text_heads=2,
    text_ffn_dim=32,
    text_positions=12,
    text_tokens=10,
)
DEAD = ("backbone.layers.3.res_gate.", "backbone.layers.3.visual_gate.", "backbone.layers.3.visual_residual.")


@pytest.fixture(scope="module")
def network() -> RemoteSAM:
    made = RemoteSAM.from_config(SMALL, is_trainable=False)
    made.load_state_dict(remotesam_state(made))
    return made


def pixels(count: int, height: int = 128, width: int = 128, seed: int = 1) -> Any:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def tokens(count: int, seed: int = 2) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 11, (count, 1), generator=generator)
    mask = (torch.arange(10) < lengths).long()
    return torch.randint(1, 50, (count, 10), generator=generator) * mask, mask


def difference(ours: Any, truth: Any) -> float:
    """Root mean square difference in standard deviations of the truth."""
    return float((ours - truth).square().mean().sqrt() / truth.std())


def masks_differ(ours: Any, truth: Any) -> float:
    return float((ours.argmax(-3) != truth.argmax(-3)).float().mean())


@pytest.mark.parametrize("size", [(128, 128), (125, 127), (126, 128)])
@pytest.mark.parametrize("way", ["fast", "plain", "training"])
def test_logits_are_those_of_the_plain_twin(network: RemoteSAM, size: tuple[int, int], way: str) -> None:
    images, (ids, mask) = pixels(2, *size), tokens(2)
    with torch.no_grad():
        truth = PlainRemoteSAM(network)(images, ids, mask)
    if way == "training":
        ours = network(images, ids, mask).detach()
    elif way == "plain":
        with torch.no_grad(), plain_arithmetic():
            ours = network(images, ids, mask)
    else:
        with torch.no_grad():
            ours = network(images, ids, mask)
    assert difference(ours, truth) < 3e-5
    assert ours.shape == (2, 2, *size)


def test_parts_give_what_the_whole_gives(network: RemoteSAM) -> None:
    images, (ids, mask) = pixels(2), tokens(3)
    answers = network.decode(network.encode_windows(images), network.encode_text(ids, mask))
    assert answers.shape == (2, 3, 2, 128, 128)
    with torch.no_grad():
        for prompt in range(3):
            whole = network(images, *(part[prompt].expand(2, -1) for part in (ids, mask)))
            assert difference(answers[:, prompt], whole) < 3e-5


def test_prompts_do_not_change_each_other(network: RemoteSAM) -> None:
    image, (ids, mask) = network.encode_windows(pixels(1)), tokens(3)
    together = network.decode(image, network.encode_text(ids, mask))
    apart = [network.decode(image, network.encode_text(ids[n : n + 1], mask[n : n + 1])) for n in (2, 0, 1)]
    assert torch.equal(together, torch.cat([apart[1], apart[2], apart[0]], 1))


def test_windows_do_not_change_each_other_wherever_they_stand(network: RemoteSAM) -> None:
    images, prompts = pixels(3), network.encode_text(*tokens(1))
    together = network.decode(network.encode_windows(images), prompts)
    turned = network.decode(network.encode_windows(images[[2, 0, 1]].clone()), prompts)
    alone = network.decode(network.encode_windows(images[1:2].clone()), prompts)
    assert torch.equal(together[[2, 0, 1]], turned)
    assert torch.equal(together[1:2], alone)


def test_same_input_gives_the_same_bytes(network: RemoteSAM) -> None:
    prompts = network.encode_text(*tokens(2))
    first, second = (network.decode(network.encode_windows(pixels(1)), prompts) for _ in range(2))
    assert torch.equal(first, second)


def test_threads_change_no_more_than_rounding(network: RemoteSAM) -> None:
    threads, answers = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            answers.append(network.decode(network.encode_windows(pixels(1)), network.encode_text(*tokens(1))))
    finally:
        torch.set_num_threads(threads)
    assert difference(*answers) < 3e-5


def test_words_under_the_mask_do_not_matter(network: RemoteSAM) -> None:
    ids, mask = tokens(1)
    mask[:, 5:] = 0
    other = torch.where(mask == 1, ids, 49)
    image = network.encode_windows(pixels(1))
    answers = [network.decode(image, network.encode_text(words, mask)) for words in (ids, other)]
    assert difference(*answers) < 3e-5


def test_another_prompt_gives_another_answer(network: RemoteSAM) -> None:
    answers = network.decode(network.encode_windows(pixels(1)), network.encode_text(*tokens(2)))
    assert difference(answers[:, 0], answers[:, 1]) > 0.1


def test_gradients_reach_all_but_the_parts_without_effect() -> None:
    made = RemoteSAM.from_config(SMALL)
    made.train()
    images, (ids, mask) = pixels(2), tokens(2)
    made(images, ids, mask).square().mean().backward()
    without = {name for name, value in made.named_parameters() if value.grad is None}
    assert without == {name for name, _ in made.named_parameters() if name.startswith(DEAD)}
    assert all(torch.isfinite(value.grad).all() for _, value in made.named_parameters() if value.grad is not None)


def test_parts_without_effect_have_none(network: RemoteSAM) -> None:
    other = RemoteSAM.from_config(SMALL, is_trainable=False)
    state = network.state_dict()
    other.load_state_dict({name: value * 0 if name.startswith(DEAD) else value for name, value in state.items()})
    answers = [net.decode(net.encode_windows(pixels(1)), net.encode_text(*tokens(1))) for net in (network, other)]
    assert torch.equal(*answers)


def test_a_fresh_network_learns() -> None:
    torch.manual_seed(5)
    made = RemoteSAM.from_config(SMALL).train()
    images, (ids, mask) = pixels(2), tokens(2)
    target = (F.avg_pool2d(images[:, 0], 31, 1, 15) > 0).long()
    optimiser, losses = torch.optim.AdamW(made.parameters(), lr=1e-3), []
    for _ in range(8):
        loss = F.cross_entropy(made(images, ids, mask), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_network_made_for_loading_is_the_same_once_loaded(network: RemoteSAM) -> None:
    fresh = RemoteSAM.from_config(SMALL)
    fresh.load_state_dict(network.state_dict())
    images, (ids, mask) = pixels(1), tokens(1)
    with torch.no_grad():
        assert torch.equal(fresh(images, ids, mask), network(images, ids, mask))


def test_training_after_inference_mode_works(network: RemoteSAM) -> None:
    grid = replace(SMALL, window_px=96)
    made = RemoteSAM.from_config(grid)
    images, (ids, mask) = pixels(1, 96, 96), tokens(1)
    with torch.inference_mode(), plain_arithmetic():
        made(images, ids, mask)
    made(images, ids, mask).sum().backward()
    assert made.classifier.conv1_1.weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers_give_nearly_the_same_mask(network: RemoteSAM, dtype: Any) -> None:
    short = RemoteSAM.from_config(SMALL, is_trainable=False)
    short.load_state_dict(network.state_dict())
    short.to(dtype)
    ids, mask = tokens(2)
    ours = short.decode(short.encode_windows(pixels(2).to(dtype)), short.encode_text(ids, mask))
    truth = network.decode(network.encode_windows(pixels(2)), network.encode_text(ids, mask))
    assert ours.dtype == torch.float32
    assert torch.isfinite(ours).all()
    assert masks_differ(ours, truth) < (0.05 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.parametrize("shape", [(1, 3, 124, 128), (1, 3, 129, 128), (1, 3, 128, 132), (1, 4, 128, 128), (3, 128, 128)])
def test_images_of_another_size_are_refused(network: RemoteSAM, shape: tuple[int, ...]) -> None:
    for call in (network.encode_windows, lambda images: network(images, *tokens(1))):
        with pytest.raises(ModelError, match="sides of 125 to 128 px") as caught:
            call(torch.zeros(shape))
        assert caught.value.code == "model-shape"


def test_tokens_that_do_not_fit_are_refused(network: RemoteSAM) -> None:
    ids, mask = tokens(1)
    for wrong in ((ids, mask[:, :5]), (ids[0], mask[0]), (ids.repeat(1, 2), mask.repeat(1, 2))):
        with pytest.raises(ModelError, match="tokens and mask"):
            network.encode_text(*wrong)
    with pytest.raises(ModelError, match="no pairs"):
        network(pixels(2), ids, mask)


def test_config_survives_json() -> None:
    written = json.loads(json.dumps(SMALL.as_dict()))
    assert RemoteSAMConfig.from_dict(written) == SMALL
    assert RemoteSAMConfig.from_dict({}) == RemoteSAMConfig()
    assert len({SMALL.digest, RemoteSAMConfig().digest, replace(SMALL, window_px=64).digest}) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("window_px", 100),
        ("window_px", 32),
        ("window_px", "896"),
        ("window_px", True),
        ("embed_dim", 6),
        ("embed_dim", 1 << 30),
        ("depths", (1, 1, 1)),
        ("depths", (1, 1, 0, 1)),
        ("heads", (3, 2, 4, 8)),
        ("heads", 4),
        ("swin_window", 5),
        ("text_heads", 5),
        ("text_tokens", 13),
        ("decoder_dim", -1),
        ("vocabulary", 1.5),
    ],
)
def test_sizes_that_do_not_fit_are_refused(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"config.{name}") as caught:
        RemoteSAMConfig.from_dict(SMALL.as_dict() | {name: value})
    assert caught.value.code == "config-invalid"


def test_unknown_sizes_are_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match='Did you mean "embed_dim"') as caught:
        RemoteSAMConfig.from_dict({"embeded_dim": 8})
    assert caught.value.code == "config-unknown-key"
