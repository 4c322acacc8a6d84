"""A reader sees the old file or the new one, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from collectionlora.collection import atomic
from collectionlora.collection.atomic import STALE_SECONDS, atomic_write
from collectionlora.collection.errors import CollectionError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_file_appears_whole_and_alone(tmp_path):
    target = tmp_path / "new" / "deep" / "file.bin"
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"one")
        assert temporary.parent == target.parent
        assert not target.exists()
    assert target.read_bytes() == b"one"
    with atomic_write(str(target)) as temporary:
        temporary.write_bytes(b"two")
        assert target.read_bytes() == b"one"
    assert target.read_bytes() == b"two"
    assert names(target.parent) == ["file.bin"]


@pytest.mark.parametrize("refusals", [3, 99])
def test_a_file_that_is_looked_at_for_a_moment_is_waited_for(refusals, tmp_path, monkeypatch):
    """As Windows refuses to replace one."""
    target, replace, left = tmp_path / "file.bin", Path.replace, [refusals]
    target.write_bytes(b"one")

    def refusing(self, other):
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError(13, "used by another process")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", refusing)
    monkeypatch.setattr(atomic.time, "sleep", lambda _: None)
    refused = pytest.raises(CollectionError, match="is in use") if refusals == 99 else nullcontext()
    with refused, atomic_write(target) as temporary:
        temporary.write_bytes(b"two")
    assert target.read_bytes() == (b"one" if refusals == 99 else b"two")
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "bad disk")])
def test_any_error_leaves_the_previous_file_and_nothing_else(error, tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


class WrappedError(Exception):
    """Stands for a library that wraps the system's error in its own type."""


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        WrappedError("I/O error: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("existed", [True, False])
def test_a_full_disk_is_said_and_the_previous_file_survives(existed, error, tmp_path):
    target = tmp_path / "file.bin"
    if existed:
        target.write_bytes(b"old")

    def fail() -> None:
        with atomic_write(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(CollectionError, match="disk is full") as caught:
        fail()
    assert str(target) in str(caught.value)
    assert ("the previous file is untouched" if existed else "nothing was written") in str(caught.value)
    assert names(tmp_path) == (["file.bin"] if existed else [])


def test_a_disk_that_fills_up_at_the_flush_is_noticed(tmp_path, monkeypatch):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(CollectionError, match="disk is full"), atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_the_systems_own_full_device_is_recognised(tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")

    def fill() -> None:
        with atomic_write(target) as temporary:
            temporary.symlink_to("/dev/full")
            temporary.write_bytes(b"x" * 100)

    with pytest.raises(CollectionError, match="disk is full"):
        fill()
    assert target.read_bytes() == b"old"


WRITER = """
import sys, time
from collectionlora.collection.atomic import atomic_write
with atomic_write(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_killed_writer_leaves_the_previous_file(tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline().strip() == b"ready"
    os.kill(writer.pid, signal.SIGKILL) if os.name == "posix" else writer.kill()
    writer.wait()
    writer.stdout.close()
    assert target.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2  # what it had begun


def test_leftovers_of_killed_writers_are_swept_and_live_ones_kept(tmp_path):
    target = tmp_path / "file[1].bin"
    dead, live, foreign = (
        tmp_path / name for name in (".file[1].bin.a.tmp", ".file[1].bin.b.tmp", ".file1.bin.c.tmp")
    )
    for path in (dead, live, foreign):
        path.write_bytes(b"half")
    old = time.time() - STALE_SECONDS - 60
    for path in (dead, foreign):
        os.utime(path, (old, old))
    with atomic_write(target) as temporary:
        temporary.write_bytes(b"new")
    assert not dead.exists()
    assert live.exists()
    assert foreign.exists()  # of another file


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
def test_a_file_is_as_open_as_before_or_as_new_ones_are(tmp_path):
    target, plain = tmp_path / "file.safetensors", tmp_path / "plain"
    plain.touch()
    for mode in (plain.stat().st_mode, 0o100664, 0o100600):
        if target.exists():
            target.chmod(mode)
        with atomic_write(target) as temporary:
            save_file({"a": torch.zeros(1)}, temporary)  # whose file is for its owner alone
        assert target.stat().st_mode == mode


def test_a_link_keeps_pointing_where_it_did(tmp_path):
    real, link = tmp_path / "store" / "real.bin", tmp_path / "link.bin"
    real.parent.mkdir()
    real.write_bytes(b"old")
    link.symlink_to(real)
    with atomic_write(link) as temporary:
        temporary.write_bytes(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"
