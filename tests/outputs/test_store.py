"""The store: whole files or none, one winner of create, clear errors, nothing outside the root."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eo_batch.core.errors import PolicyError, StoreError
from eo_batch.outputs.doors import TEMPORARY
from eo_batch.outputs.store import Store

CALLS = ("_mkdir", "_open_new", "_write", "_fsync", "_fsync_directory", "_rename", "_link")


class FaultStore(Store):
    """A store whose call `call` of the operating system fails from its `nth` use on."""

    def __init__(self, root: Path, call: str, *, number: int, nth: int = 1) -> None:
        super().__init__(root)
        self.used = 0
        real = getattr(self.door, call)

        def faulty(*arguments: Any) -> Any:
            self.used += 1
            if self.used >= nth:
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        setattr(self.door, call, faulty)


def leftovers(root: Path) -> list[str]:
    return [path.name for path in root.rglob("*") if path.name.endswith(TEMPORARY)]


def test_put_gives_the_sha256_and_get_the_bytes(store: Store) -> None:
    assert store.put("a/b/c.bin", b"hello") == hashlib.sha256(b"hello").hexdigest()
    assert store.get("a/b/c.bin") == b"hello"
    assert store.size("a/b/c.bin") == 5
    assert store.exists("a/b/c.bin")
    assert not store.exists("a/b/d.bin")


def test_put_replaces_a_file(store: Store) -> None:
    store.put("a", b"old")
    store.put("a", b"new")
    assert store.get("a") == b"new"


def test_create_never_replaces_a_file(store: Store) -> None:
    assert store.create("a", b"first")
    assert not store.create("a", b"second")
    assert store.get("a") == b"first"
    assert leftovers(Path(store.where)) == []


def test_missing_files_raise_file_not_found(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.get("nothing")
    with pytest.raises(FileNotFoundError):
        store.size("nothing")
    store.delete("nothing")


def test_list_is_sorted_and_leaves_temporary_files_out(store: Store) -> None:
    for path in ("b/2", "b/1", "a", "b/1x/y", f"b/0.abc{TEMPORARY}"):
        (Path(store.where) / path).parent.mkdir(parents=True, exist_ok=True)
        (Path(store.where) / path).write_bytes(b"x")
    assert list(store.list()) == ["a", "b/1", "b/1x/y", "b/2"]
    assert list(store.list("b/1x")) == ["b/1x/y"]
    assert list(store.list("none")) == []


def test_sweep_removes_what_a_killed_writer_left(store: Store) -> None:
    store.put("a/b", b"kept")
    (Path(store.where) / "a" / f"b.0123{TEMPORARY}").write_bytes(b"half")
    assert store.sweep() == 1
    assert leftovers(Path(store.where)) == []
    assert store.get("a/b") == b"kept"


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a/..", "", ".", "a\\b", "a\0b", ".hidden", "a/.hidden"])
def test_paths_outside_the_root_are_refused(store: Store, path: str) -> None:
    with pytest.raises(PolicyError) as caught:
        store.put(path, b"x")
    assert caught.value.code == "path-escape"


@pytest.mark.parametrize("operation", ["put", "create", "get", "exists", "size", "delete"])
def test_symbolic_links_below_the_root_are_refused(store: Store, tmp_path: Path, operation: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"secret")
    store.put("first", b"")
    (Path(store.where) / "parts").symlink_to(outside)
    (Path(store.where) / "link").symlink_to(outside / "file")
    data = (b"x",) if operation in ("put", "create") else ()
    for path in ("parts/file", "link"):
        with pytest.raises(PolicyError) as caught:
            getattr(store, operation)(path, *data)
        assert caught.value.code == "path-escape"
    assert (outside / "file").read_bytes() == b"secret"


def test_listing_does_not_follow_links(store: Store, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"secret")
    store.put("a", b"")
    (Path(store.where) / "parts").symlink_to(tmp_path / "outside")
    assert "parts/file" not in list(store.list())


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "disk-full"),
        (errno.EACCES, "store-denied"),
        (errno.EROFS, "store-denied"),
        (errno.EPERM, "store-denied"),
        (errno.EIO, "store-unreachable"),
        (errno.ESTALE, "store-unreachable"),
    ],
)
@pytest.mark.parametrize("operation", ["put", "create"])
@pytest.mark.parametrize("call", CALLS)
def test_every_failing_call_leaves_the_old_file_or_none(
    tmp_path: Path, call: str, operation: str, number: int, code: str
) -> None:
    sound = Store(tmp_path)
    sound.put("old/file", b"old")
    broken = FaultStore(tmp_path, call, number=number)
    for path in ("old/file", "new/file"):
        before = sound.get(path) if sound.exists(path) else None
        error = error_of(lambda path=path: getattr(broken, operation)(path, b"new content"))
        if error is not None:
            assert error.code == code
            assert path in str(error)
            assert error.__cause__ is None
        after = sound.get(path) if sound.exists(path) else None
        assert after in (before, b"new content")
        assert error is not None or not broken.used or after == b"new content" or operation == "create"
    assert leftovers(tmp_path) == []


@pytest.fixture
def other(tmp_path: Path) -> Store:
    """A store on the same file system that holds one file."""
    source = Store(tmp_path / "other")
    source.put("scores/one", b"scores")
    return source


def test_an_adopted_file_takes_no_space(store: Store, other: Store) -> None:
    store.adopt("scores/one", other)
    assert store.get("scores/one") == b"scores"
    assert (Path(store.where) / "scores/one").samefile(Path(other.where) / "scores/one")
    assert leftovers(Path(store.where)) == []


def test_adopting_twice_or_over_another_file_gives_the_file(store: Store, other: Store) -> None:
    store.put("scores/one", b"damaged")
    store.adopt("scores/one", other)
    store.adopt("scores/one", other)
    assert store.get("scores/one") == b"scores"
    assert leftovers(Path(store.where)) == []


def test_what_becomes_of_an_adopted_file_leaves_the_other_run_alone(store: Store, other: Store) -> None:
    store.adopt("scores/one", other)
    store.put("scores/one", b"new")
    assert other.get("scores/one") == b"scores"
    store.adopt("scores/one", other)
    other.put("scores/one", b"newer")
    assert store.get("scores/one") == b"scores"
    other.delete("scores/one")
    assert store.get("scores/one") == b"scores"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_a_file_is_copied_where_there_are_no_links(tmp_path: Path, other: Store, number: int) -> None:
    store = FaultStore(tmp_path / "run", "_link", number=number)
    store.adopt("scores/one", other)
    assert store.get("scores/one") == b"scores"
    assert not (Path(store.where) / "scores/one").samefile(Path(other.where) / "scores/one")
    assert leftovers(Path(store.where)) == []


def test_a_file_on_another_file_system_is_copied(store: Store, other: Store) -> None:
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == Path(other.where).stat().st_dev:
        pytest.skip("there is no second file system to write to")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        far = Store(folder)
        far.adopt("scores/one", other)
        assert far.get("scores/one") == b"scores"
        assert leftovers(Path(far.where)) == []


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "disk-full"), (errno.EIO, "store-unreachable")])
@pytest.mark.parametrize("call", CALLS)
def test_an_adoption_that_fails_leaves_the_old_file_or_none(
    tmp_path: Path, other: Store, call: str, number: int, code: str
) -> None:
    sound = Store(tmp_path / "run")
    sound.put("scores/one", b"old")
    other.put("new/folder/two", b"two")
    broken = FaultStore(tmp_path / "run", call, number=number)
    for path, old, new in (("scores/one", b"old", b"scores"), ("new/folder/two", None, b"two")):
        error = error_of(lambda path=path: broken.adopt(path, other))
        if error is not None:
            assert error.code == code
        after = sound.get(path) if sound.exists(path) else None
        assert after in ((old, new) if error else (new,))
    assert leftovers(tmp_path) == []
    assert other.get("scores/one") == b"scores"


def test_a_file_that_is_not_there_cannot_be_adopted(store: Store, other: Store) -> None:
    with pytest.raises(FileNotFoundError):
        store.adopt("scores/two", other)
    with pytest.raises(FileNotFoundError):
        store.adopt("scores", other)
    assert list(store.list()) == []


def test_adopting_never_follows_a_link_out_of_either_run(store: Store, other: Store, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (Path(other.where) / "scores/link").symlink_to(tmp_path / "secret")
    store.put("first", b"")
    (Path(store.where) / "parts").symlink_to(tmp_path)
    other.put("parts/one", b"x")
    for path in ("scores/link", "parts/one", "../secret"):
        with pytest.raises(PolicyError) as caught:
            store.adopt(path, other)
        assert caught.value.code == "path-escape"


def error_of(action: Callable[[], Any]) -> StoreError | None:
    """The StoreError that `action` raises, if any."""
    try:
        action()
    except StoreError as error:
        return error
    return None


def test_disk_full_says_what_is_free_and_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        FaultStore(tmp_path, "_write", number=errno.ENOSPC).put("a", bytes(3_000_000))
    assert "MB free, 3.0 MB needed" in str(caught.value)
    assert "eo-batch resume" in caught.value.fix


def test_a_full_disk_leaves_no_file(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        store = Store(place / "run")
        store.put("fits", bytes(100_000))
        with pytest.raises(StoreError) as caught:
            store.put("too/big", bytes(2_000_000))
        assert caught.value.code == "disk-full"
        assert list(store.list()) == ["fits"]
        assert leftovers(place) == []
    finally:
        subprocess.run(["umount", place], check=True)


def test_an_error_in_a_writer_block_leaves_no_file(store: Store) -> None:
    def fail_halfway() -> None:
        with store.writer("big") as target:
            target.write(b"some")
            raise KeyError

    with pytest.raises(KeyError):
        fail_halfway()
    assert list(store.list()) == []
    assert leftovers(Path(store.where)) == []


def test_writer_counts_and_hashes_what_was_written(store: Store) -> None:
    with store.writer("big") as target:
        target.write(b"some")
        assert not store.exists("big")
        target.write(b"thing")
    assert store.get("big") == b"something"
    assert (target.bytes, target.sha256) == (9, hashlib.sha256(b"something").hexdigest())


def test_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        Store(tmp_path / "run").put("a/b", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "run" / "a").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "run" / "a" / "b").stat().st_mode & 0o777 == 0o640


def test_data_is_synced_before_it_is_named(tmp_path: Path) -> None:
    calls: list[str] = []
    store = Store(tmp_path)
    store.put("a/first", b"")
    for call in CALLS:
        real = getattr(store.door, call)
        setattr(store.door, call, lambda *a, real=real, call=call: (calls.append(call), real(*a))[1])
    store.put("a/b", b"x")
    store.create("a/c", b"x")
    assert calls == [
        *("_open_new", "_write", "_fsync", "_rename", "_fsync_directory"),
        *("_open_new", "_write", "_fsync", "_link", "_fsync_directory"),
    ]


def test_free_bytes_agrees_with_the_file_system(store: Store) -> None:
    free = os.statvfs(Path(store.where).parent)
    assert store.free_bytes() == pytest.approx(free.f_bavail * free.f_frsize, rel=0.05)
