"""Published weights are downloaded by the real huggingface_hub from a hub on loopback that misbehaves as told."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from models.weights_of_tests import REPO, REVISION, SMALL, WORDS, published, save, small_state, wrapped
from safetensors import safe_open
from servers.hub import SIGNATURE, Fault, Hub
from typer.testing import CliRunner

from eo_batch.cli.main import app
from eo_batch.core.errors import ConfigError, EoBatchError, ModelError, PolicyError
from eo_batch.models import weights
from eo_batch.models.weights import checkpoints, find_weights, hub
from eo_batch.models.weights import published as table
from eo_batch.models.weights.checkpoints import find_architecture
from eo_batch.models.weights.hub import fetch

NETWORK = replace(find_architecture("remotesam"), name="small", published_config=SMALL.as_dict)
TOKEN = "hf_" + "Secret0123456789Secret0123456789"


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Checkpoint and vocabulary as they were published; tests must not change them."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "vocab.txt").write_bytes(WORDS)
    return save(folder / "Small.pth", wrapped(small_state())), folder / "vocab.txt"


@pytest.fixture
def server(originals, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "library-cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as opened:
        monkeypatch.setenv("HF_ENDPOINT", opened.endpoint)
        opened.publish(REPO, REVISION, "Small.pth", originals[0])
        opened.publish(REPO, REVISION, "vocab.txt", originals[1], is_large=False)
        yield opened


@pytest.fixture
def files(originals):
    return published(originals[0]), published(originals[1], keep_as="vocab.txt")


@pytest.fixture
def get(server, files, tmp_path):
    """Fetch into a temporary folder; waits pass at once and are kept in `get.waits`."""

    def _get(*, files=files):
        return fetch("small", files=files, architecture=NETWORK, folder=tmp_path / "small", wait=_get.waits.append)

    _get.waits = []
    _get.folder = tmp_path / "small"
    return _get


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_fetch_gives_the_network_and_the_vocabulary_and_leaves_no_checkpoint(get, originals):
    found = get()
    assert names(get.folder) == ["small.safetensors", "small.safetensors.sha256", "vocab.txt"]
    assert found.weights == get.folder / "small.safetensors"
    assert found.vocabulary.read_bytes() == WORDS
    assert found.source_sha256 == hashlib.sha256(originals[0].read_bytes()).hexdigest()
    with safe_open(found.weights, framework="pt") as file:
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in small_state().items())


def test_fetching_again_asks_the_hub_nothing(get, server):
    first = get()
    asked = len(server.asked)
    assert get() == first
    assert len(server.asked) == asked


@pytest.mark.parametrize("damage", ["cut", "one bit"])
def test_a_file_of_weights_that_was_damaged_is_fetched_again(get, damage):
    first = get()
    data = bytearray(first.weights.read_bytes())
    data[-1] ^= 1
    first.weights.write_bytes(data[:-100] if damage == "cut" else data)
    assert get() == first


def test_sha256sum_can_check_what_was_fetched(get):
    found = get()
    line = found.weights.with_name("small.safetensors.sha256").read_text()
    assert line == f"{hashlib.sha256(found.weights.read_bytes()).hexdigest()}  small.safetensors\n"


@pytest.mark.parametrize("kind", ["reset", "short"])
def test_an_interrupted_answer_goes_on_with_the_missing_bytes_alone(get, server, files, kind):
    server.script("Small.pth", Fault(kind, after=30_000), Fault(kind, after=10_000))
    get()
    starts = [asked.range for asked in server.bodies_of("Small.pth")]
    assert len(starts) == 3
    assert starts[0] == ""
    offsets = [int(text.removeprefix("bytes=").removesuffix("-")) for text in starts[1:]]
    assert 0 < offsets[0] <= 30_000
    assert offsets[0] < offsets[1] <= offsets[0] + 10_000
    assert len(get.waits) == 2


def test_an_interrupted_process_goes_on_with_the_missing_bytes_alone(get, server):
    server.script("Small.pth", Fault("short", after=30_000), *[Fault("status", 503)] * 5)
    with pytest.raises(ModelError, match="weights-unreachable: .*HTTP 503.*what is here already is kept"):
        get()
    left = (get.folder / "Small.pth.partial").stat().st_size
    assert left == 30_000
    assert not (get.folder / "small.safetensors").exists()
    get()
    assert server.bodies_of("Small.pth")[-1].range == f"bytes={left}-"


CHILD = """
import sys, time
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from models.test_weights_fetch import NETWORK
from models.weights_of_tests import published
from eo_batch.models.weights.hub import fetch

def wait(seconds):
    print("waiting", flush=True)
    time.sleep(600)

original = Path(sys.argv[1])
fetch("small", files=(published(original),), architecture=NETWORK, folder=Path(sys.argv[2]), wait=wait)
"""


def test_a_killed_process_leaves_what_it_had_to_the_next_one(get, server, originals, files):
    server.script("Small.pth", Fault("short", after=30_000))
    command = [sys.executable, "-c", CHILD, str(originals[0]), str(get.folder), str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "waiting\n"
        child.kill()
    left = (get.folder / "Small.pth.partial").stat().st_size
    assert 0 < left <= 30_000
    get(files=files[:1])
    assert [asked.range for asked in server.bodies_of("Small.pth")] == ["", f"bytes={left}-"]


def test_what_a_killed_conversion_left_is_swept_and_nothing_else(get):
    get.folder.mkdir()
    (get.folder / f".small.safetensors.{'0a' * 16}.tmp").write_bytes(bytes(1000))
    (get.folder / ".notes.tmp").write_text("mine")
    get()
    assert [name for name in names(get.folder) if name.endswith(".tmp")] == [".notes.tmp"]


@pytest.mark.parametrize("proxy", ["socks5://user:pass-of-user@127.0.0.1:9", "nonsense://user:pass-of-user@127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_told_without_its_password(get, monkeypatch, proxy):
    from huggingface_hub import close_session

    close_session()
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ConfigError, match=r"proxy cannot be used.*ALL_PROXY") as caught:
        get()
    assert "pass-of-user" not in str(caught.value)


def test_a_download_that_ended_before_its_conversion_is_not_asked_for_again(get, server, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "convert_checkpoint", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get()
    monkeypatch.undo()
    os.environ["HF_ENDPOINT"] = server.endpoint
    try:
        get()
    finally:
        del os.environ["HF_ENDPOINT"]
    assert len(server.bodies_of("Small.pth")) == 1


def test_a_hub_that_knows_no_ranges_is_asked_for_the_whole_again(get, server):
    server.script("Small.pth", Fault("short", after=30_000), Fault("whole"))
    get()
    assert len(server.bodies_of("Small.pth")) == 2


def test_a_hub_that_sends_another_part_is_not_believed(get, server):
    server.script("Small.pth", Fault("short", after=30_000), Fault("other-range"))
    get()
    assert [asked.range for asked in server.bodies_of("Small.pth")] == ["", "bytes=30000-", ""]


def test_leftovers_of_something_else_are_found_by_their_hash_and_thrown_away(get, server, files):
    get.folder.mkdir()
    (get.folder / "Small.pth.partial").write_bytes(bytes(30_000))
    with pytest.raises(PolicyError, match=r"weights-hash: .*what was loaded is removed"):
        get()
    assert names(get.folder) == ["vocab.txt"]
    get()


def test_more_leftovers_than_the_file_has_are_thrown_away_first(get, files):
    get.folder.mkdir()
    (get.folder / "Small.pth.partial").write_bytes(bytes(files[0].bytes + 1))
    get()
    assert names(get.folder) == ["small.safetensors", "small.safetensors.sha256", "vocab.txt"]


def test_g08_wrong_bytes_are_never_used(get, server):
    server.script("Small.pth", Fault("wrong"))
    with pytest.raises(PolicyError, match="weights-hash: .*its sha256 is"):
        get()
    assert names(get.folder) == ["vocab.txt"]


def test_another_file_is_refused_before_its_first_byte(get, server, files):
    other = replace(files[0], sha256="0" * 64)
    with pytest.raises(PolicyError, match="weights-hash: .*the hub announces sha256"):
        get(files=(other,))
    assert server.bodies_of("Small.pth") == []


def test_another_size_is_refused_before_the_first_byte(get, server, files):
    server.announce("Small.pth", size=files[0].bytes + 1)
    with pytest.raises(PolicyError, match="weights-hash: .*the hub announces .* bytes, not"):
        get()
    assert server.bodies_of("Small.pth") == []


def test_a_hub_that_never_stops_sending_is_stopped(get, server, files):
    server.script("Small.pth", Fault("endless"))
    with pytest.raises(PolicyError, match="weights-hash: .*sends more than"):
        get()
    assert not (get.folder / "small.safetensors").exists()
    assert (get.folder / "Small.pth.partial").stat().st_size <= files[0].bytes


@pytest.mark.parametrize("code", [401, 403, 404])
@pytest.mark.parametrize("is_head", [True, False])
def test_a_refusal_is_final(get, server, code, is_head):
    server.script("Small.pth", Fault("status", code, head=is_head, repeat=True))
    with pytest.raises(ModelError, match=rf"weights-unreachable: {REPO}/Small\.pth at a{{12}}: 127\.0\.0\.1 .*HTTP {code}"):
        get()
    assert get.waits == []


@pytest.mark.parametrize("is_head", [True, False])
def test_a_busy_hub_is_asked_again_after_the_time_it_names(get, server, is_head):
    server.script(
        "Small.pth", Fault("status", 503, head=is_head), Fault("status", 429, head=is_head, headers=(("Retry-After", "7"),))
    )
    get()
    assert get.waits == [1.0, 7.0]


def test_nobody_waits_longer_than_a_minute(get, server):
    server.script("Small.pth", Fault("status", 503, headers=(("Retry-After", "86400"),)))
    get()
    assert get.waits == [60.0]


def test_a_hub_that_stays_busy_is_given_up(get, server):
    server.script("Small.pth", Fault("status", 502, repeat=True))
    with pytest.raises(ModelError, match="HTTP 502"):
        get()
    assert get.waits == [1.0, 2.0, 4.0, 8.0]


def test_redirects_in_a_circle_end(get, server):
    server.script("Small.pth", Fault("loop", repeat=True))
    with pytest.raises(ModelError, match="weights-unreachable"):
        get()


@pytest.mark.parametrize(
    ("address", "is_head"),
    [("http://[::", True), ("http://[::", False), ("file:///etc/passwd", False), ("ftp://127.0.0.1/x", False), ("", False)],
)
def test_redirects_to_what_is_no_address_of_the_web_are_not_followed(get, server, address, is_head):
    name = "vocab.txt" if is_head else "Small.pth"
    server.script(name, Fault("status", code=302, head=is_head, repeat=True, headers=(("Location", address),)))
    with pytest.raises(ModelError, match="weights-unreachable"):
        get()


def test_no_hub_at_all_is_unreachable(get, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"weights-unreachable: .*127\.0\.0\.1 does not give this file: Connect"):
        get()


@pytest.mark.parametrize("address", ["ftp://x", "file:///etc", "no address", "http://", "http://x:port", "https://x/?a=b"])
def test_an_endpoint_that_is_no_address_is_refused(get, monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(ConfigError, match="HF_ENDPOINT: is no address of a hub"):
        get()


def test_offline_nothing_is_asked_and_the_advice_says_how_to_go_on(get, server, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"weights-missing: .*HF_HUB_OFFLINE forbids.*copy the weights folder"):
        get()
    assert server.asked == []


def test_offline_what_is_there_is_used(get, monkeypatch):
    first = get()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert get() == first


def test_what_the_cache_of_the_library_holds_is_used_and_kept(get, server, monkeypatch):
    from huggingface_hub import hf_hub_download

    cached = Path(hf_hub_download(REPO, "Small.pth", revision=REVISION, endpoint=server.endpoint))
    hf_hub_download(REPO, "vocab.txt", revision=REVISION, endpoint=server.endpoint)
    asked = len(server.asked)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert get().vocabulary.read_bytes() == WORDS
    assert len(server.asked) == asked
    assert cached.is_file()


def test_a_damaged_file_in_the_cache_of_the_library_is_not_used(get, server):
    from huggingface_hub import hf_hub_download

    cached = Path(hf_hub_download(REPO, "Small.pth", revision=REVISION, endpoint=server.endpoint)).resolve()
    cached.write_bytes(bytes(cached.stat().st_size))
    get()
    assert len(server.bodies_of("Small.pth")) == 2


def test_a_token_goes_to_the_hub_and_nowhere_else(get, server, monkeypatch, caplog):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    server.script("Small.pth", Fault("short", after=100), Fault("status", 403))
    with pytest.raises(ModelError) as caught:
        get()
    assert all(asked.authorization == f"Bearer {TOKEN}" for asked in server.asked if not asked.is_cdn)
    assert [asked.authorization for asked in server.asked if asked.is_cdn] == ["", ""]
    for secret in (TOKEN, SIGNATURE):
        assert secret not in str(caught.value)
        assert secret not in caplog.text
    assert "HTTP Request" in caplog.text, "the library logs nothing, so this test shows nothing"


def test_the_hub_learns_nothing_about_this_machine(get, server):
    get()
    assert {asked.path.split("/resolve/")[0] for asked in server.asked} == {f"/{REPO}"}
    assert all("torch" not in asked.agent for asked in server.asked)
    assert all(asked.agent.startswith("eo-batch/") for asked in server.asked)


def test_a_link_in_the_weights_folder_is_not_written_through(get, tmp_path):
    outside = tmp_path / "outside.txt"
    outside.write_text("precious")
    get.folder.mkdir()
    (get.folder / "Small.pth.partial").symlink_to(outside)
    with pytest.raises(EoBatchError, match="store-"):
        get()
    assert outside.read_text() == "precious"


def test_two_fetches_do_not_meet_in_one_folder(get, server):
    get.folder.mkdir()
    descriptor = os.open(get.folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConfigError, match="another fetch is at work here"):
            get()
    finally:
        os.close(descriptor)
    get()


def test_a_checkpoint_of_another_network_is_kept_out_and_the_vocabulary_stays(get, server, tmp_path):
    other = save(tmp_path / "Other.pth", {"model": {"conv1.weight": torch.zeros(3)}})
    server.publish(REPO, REVISION, "Other.pth", other)
    with pytest.raises(ModelError, match="no checkpoint of this network"):
        get(files=(published(other),))
    assert "small.safetensors" not in names(get.folder)


@pytest.fixture
def command(server, files, monkeypatch, tmp_path):
    """`eo-batch models ...` with the small network in the table."""
    monkeypatch.setattr(table, "PUBLISHED", files)
    monkeypatch.setattr(checkpoints, "ARCHITECTURES", {"small": NETWORK})
    monkeypatch.setenv("EO_BATCH_WEIGHTS", str(tmp_path / "weights"))
    return lambda *arguments, **options: CliRunner().invoke(app, ["models", *map(str, arguments)], **options)


def test_the_command_shows_the_licence_and_asks_before_anything_is_downloaded(command, server):
    answer = command("fetch", "small", input="n\n")
    assert answer.exit_code == 2
    assert "licence: made by a test" in answer.stderr
    assert "nothing was downloaded" in answer.stderr
    assert server.asked == []


def test_the_command_downloads_when_the_licence_is_confirmed(command, tmp_path):
    answer = command("fetch", "small", input="y\n")
    assert answer.exit_code == 0, answer.stderr
    assert str(tmp_path / "weights" / "small" / "small.safetensors") in answer.stdout
    assert find_weights("small").architecture == "small"


def test_without_anyone_to_ask_the_command_needs_the_option(command, server):
    answer = command("fetch", "small", input="")
    assert (answer.exit_code, server.asked) == (2, [])
    assert "give --yes" in answer.stderr
    assert command("fetch", "small", "--yes", "--quiet", input="").exit_code == 0


def test_the_command_is_silent_about_the_licence_when_nothing_is_downloaded(command):
    command("fetch", "small", "--yes")
    again = command("fetch", "small", "--json", input="")
    assert again.exit_code == 0
    assert "licence" not in again.stderr


def test_an_interrupted_command_says_how_to_go_on(command, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "convert_checkpoint", interrupted)
    answer = command("fetch", "small", "--yes")
    assert answer.exit_code == 130
    assert "`eo-batch models fetch small` goes on from there" in answer.stderr


def test_show_tells_licence_and_origin_before_and_where_it_is_after(command):
    before = command("show", "small")
    assert before.exit_code == 0
    assert "made by a test" in before.stdout
    assert "Run: eo-batch models fetch small" in before.stderr
    command("fetch", "small", "--yes")
    assert "small.safetensors" in command("show", "small").stdout


def test_an_unknown_name_is_never_asked_of_a_hub(command, server):
    answer = command("fetch", "smal", "--yes")
    assert answer.exit_code == 2
    assert 'Did you mean "small"' in answer.stderr
    assert server.asked == []


def test_convert_is_a_command_too(command, originals, tmp_path):
    out = tmp_path / "mine.safetensors"
    answer = command("convert", originals[0], "--network", "small", "--out", out)
    assert answer.exit_code == 0, answer.stderr
    assert find_weights(out).architecture == "small"


def test_convert_takes_the_sizes_of_a_network_from_a_file(command, originals, tmp_path):
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps(SMALL.as_dict()))
    arguments = ["convert", originals[0], "--network", "small", "--out", tmp_path / "mine.safetensors", "--config", sizes]
    assert command(*arguments, "--quiet").exit_code == 0
    sizes.write_text('{"embed_dim": 1e99}')
    answer = command(*arguments)
    assert answer.exit_code == 2
    assert "config-invalid" in answer.stderr


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_its_libraries_fetch_says_what_to_install_before_anything_else(command, server, monkeypatch, missing):
    monkeypatch.setattr(weights, "find_spec", lambda name: None if name == missing else object())
    answer = command("fetch", "small", "--yes")
    assert answer.exit_code == 2
    assert 'Run: pip install "eo-batch[models]"' in answer.stderr
    assert "licence" not in answer.stderr
    assert server.asked == []


def test_the_installed_command_refuses_a_hub_that_serves_another_remotesam(server, originals, tmp_path):
    for file in table.published_files("remotesam"):
        server.publish(file.repo, file.revision, file.filename, originals[0], is_large=file.is_checkpoint, etag=file.sha256)
        server.announce(file.filename, size=file.bytes)
    home = {"HOME": str(tmp_path), "EO_BATCH_WEIGHTS": str(tmp_path / "w"), "HF_ENDPOINT": server.endpoint}
    answer = subprocess.run(
        [sys.executable, "-m", "eo_batch.cli", "models", "fetch", "remotesam", "--yes"],
        env={**os.environ, **home, "HF_HOME": str(tmp_path / "hf")}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert answer.returncode == 2
    assert "not stated by its authors" in answer.stderr
    assert "weights-hash" in answer.stderr
    assert not list((tmp_path / "w").rglob("*.safetensors"))
