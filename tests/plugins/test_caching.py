import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metarl_plugins import caching

ARRAYS = {"images": np.arange(5000, dtype=np.uint8).reshape(50, 100), "names": np.array(["a", "bcd"])}


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> caching.Arrays:
        self.calls += 1
        return ARRAYS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARL_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


def same(found: caching.Arrays) -> bool:
    return found.keys() == ARRAYS.keys() and all(np.array_equal(found[name], ARRAYS[name]) for name in ARRAYS)


def test_arrays_are_made_once(folder: Path) -> None:
    make = Maker()
    assert same(caching.cached("set", "1", make))
    assert same(caching.cached("set", "1", make))
    assert make.calls == 1
    assert [path.name for path in folder.iterdir()] == ["set-1.npz"]
    caching.cached("set", "2", make)
    assert make.calls == 2


@pytest.mark.parametrize("kept", [0, 1, 100, 4000, -1])
def test_a_file_cut_short_is_made_anew(folder: Path, kept: int) -> None:
    make, path = Maker(), folder / "set-1.npz"
    caching.cached("set", "1", make)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.warns(UserWarning, match=r"the cached .*set-1.npz cannot be read and is made anew"):
        assert same(caching.cached("set", "1", make))
    assert same(caching.cached("set", "1", make))
    assert make.calls == 2


def test_one_wrong_byte_is_noticed(folder: Path) -> None:
    make, path = Maker(), folder / "set-1.npz"
    caching.cached("set", "1", make)
    damaged = bytearray(path.read_bytes())
    damaged[2500] ^= 1
    path.write_bytes(damaged)
    with pytest.warns(UserWarning, match="cannot be read and is made anew"):
        assert same(caching.cached("set", "1", make))
    assert make.calls == 2


def test_without_a_place_to_write_it_is_made_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METARL_CACHE", str(tmp_path / "file" / "cache"))
    make = Maker()
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"cache/set-1.npz cannot be written .*METARL_CACHE may name another"):
            assert same(caching.cached("set", "1", make))
    assert make.calls == 2


def test_a_write_that_fails_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert same(caching.cached("set", "1", Maker()))
    assert list(folder.iterdir()) == []


PROCESS = """
import sys, time
import numpy as np
from metarl_plugins import caching

def make():
    time.sleep(0.3)  # so that all processes make it at once
    return {"images": np.full(3_000_000, 7, dtype=np.uint8)}

assert (caching.cached("set", "1", make)["images"] == 7).all()
"""


def test_processes_may_write_at_once(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", PROCESS]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        assert process.communicate() == (None, "")
        assert process.returncode == 0
    assert [path.name for path in folder.iterdir()] == ["set-1.npz"]
    assert (caching.cached("set", "1", Maker())["images"] == 7).all()


def test_a_process_that_was_killed_leaves_no_half_file(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "set-1.npz.0123.tmp").write_bytes(b"half")
    make = Maker()
    assert same(caching.cached("set", "1", make))
    assert same(caching.cached("set", "1", make))
    assert make.calls == 1


def test_others_may_read_what_the_umask_lets_them(folder: Path) -> None:
    before = os.umask(0o027)
    try:
        caching.cached("set", "1", Maker())
    finally:
        os.umask(before)
    assert (folder / "set-1.npz").stat().st_mode & 0o777 == 0o640


def test_what_making_raises_is_raised(folder: Path) -> None:
    def fail() -> caching.Arrays:
        raise ValueError("no images")

    with pytest.raises(ValueError, match="no images"):
        caching.cached("set", "1", fail)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARL_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert caching.folder() == Path("/a")
    monkeypatch.delenv("METARL_CACHE")
    assert caching.folder() == Path("/b/metarl")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert caching.folder() == Path("/c/.cache/metarl")


def test_fingerprints_tell_names_sizes_and_times(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.png").write_bytes(b"123")
    one, two = tmp_path / "one" / "a.png", tmp_path / "two" / "a.png"

    def told(file: Path) -> str:
        return caching.fingerprint(file.parent, [file])

    os.utime(one, ns=(10, 10))
    os.utime(two, ns=(10, 10))
    first = told(one)
    assert told(two) == first
    os.utime(two, ns=(10, 11))
    assert told(two) != first
    one.write_bytes(b"1234")
    os.utime(one, ns=(10, 10))
    assert told(one) != first
    one.rename(one.with_name("b.png"))
    two.write_bytes(b"1234")
    os.utime(two, ns=(10, 10))
    assert told(one.with_name("b.png")) != told(two)


@pytest.mark.parametrize("whole", [True, False])
def test_fingerprints_tell_folders_whose_files_look_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """Names, sizes and times are the same, as in archives that were extracted."""
    monkeypatch.setattr(caching, "READ_WHOLE", (2000, 2**26) if whole else (2, 10))

    def told(folder: str, content: bytes) -> str:
        files = [tmp_path / folder / f"{number}.bmp" for number in range(5)]
        for file in files:
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(content)
            os.utime(file, ns=(10, 10))
        return caching.fingerprint(tmp_path / folder, files)

    first = told("one", b"dark")
    assert told("two", b"pale") != first
    assert told("one", b"pale") != first  # another data set in the same place
    assert (told("two", b"dark") == first) == whole  # a copy is known by what it holds where that is quickly read
    assert told("one", b"dark") == first


@pytest.mark.parametrize("shape", [(49, 100), (50, 99), (5000,)])
def test_an_entry_of_another_shape_is_made_anew(folder: Path, shape: tuple[int, ...]) -> None:
    make = Maker()
    caching.cached("set", "1", lambda: {**ARRAYS, "images": np.zeros(shape, dtype=np.uint8)})
    with pytest.warns(UserWarning, match=r"is made anew: images has shape .*, not \(50, 100\)"):
        assert same(caching.cached("set", "1", make, {"images": (50, 100)}))
    assert same(caching.cached("set", "1", make, {"images": (50, 100)}))
    assert make.calls == 1
    with pytest.warns(UserWarning, match="is made anew"):
        caching.cached("set", "1", make, {"absent": (1,)})


@pytest.mark.parametrize("told", [None, "~/cache"])
def test_without_a_home_folder_nothing_is_cached(monkeypatch: pytest.MonkeyPatch, told: str | None) -> None:
    for name in ("HOME", "METARL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if told:
        monkeypatch.setenv("METARL_CACHE", told)

    def nobody(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    make = Maker()
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"nothing is cached: there is no home folder .*METARL_CACHE may name a"):
            assert same(caching.cached("set", "1", make))
    assert make.calls == 2
