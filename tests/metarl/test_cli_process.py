"""The program in processes that lack something: open streams, a working folder, a plotting backend, names as text."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from metarl.cli import main
from metarl_envs.navigation import PointNavigation

TINY = [
    "train", "maml", "point-navigation", "--iterations", "1", "--meta-batch-size", "2", "--device", "cpu",
    "--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "3", "--algorithm.hidden", "4",
]  # fmt: skip


def run(
    words: list[str | bytes], redirected: str = "", folder: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    command = ["bash", "-c", f'"$0" "$@" {redirected}', sys.executable, "-m", "metarl", *words]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, cwd=folder, check=False)


@pytest.mark.parametrize("words", [["--version"], ["list", "outers"], ["plot", "nothing"]])
@pytest.mark.parametrize("closed", [">&-", ">&- 2>&- <&-"])
def test_a_closed_stream_is_no_error(words: list[str | bytes], closed: str) -> None:
    told = run(words, closed)
    assert told.returncode == (2 if words[0] == "plot" else 0)
    assert b"Traceback" not in told.stderr


def test_a_daemon_in_a_notebook_trains(tmp_path: Path) -> None:
    told = run([*TINY, "--out", str(tmp_path / "run")], ">&- 2>&-", MPLBACKEND="module://matplotlib_inline.no_such")
    assert told.returncode == 0
    assert (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_working_folder_that_is_gone_is_told_in_one_line(tmp_path: Path) -> None:
    command = f'mkdir "{tmp_path}/gone" && cd "{tmp_path}/gone" && rmdir ../gone && exec "$0" -c "$1" plot run'
    start = f"import sys; sys.path[:0] = {sys.path!r}; from metarl.cli import main; sys.exit(main())"
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = ["bash", "-c", command, sys.executable, start]
    told = subprocess.run(words, capture_output=True, text=True, env=usual, check=False)
    assert told.returncode == 2
    assert told.stderr.splitlines()[-1].startswith("metarl: the working folder was deleted; change to another one (cd)")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, names of files are always text")
def test_a_run_folder_that_is_no_text_is_refused_and_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "--quiet", "--out", os.fsdecode(bytes(tmp_path) + b"/r\xff")]) == 2
    assert f"metarl: {tmp_path}/r\\xff is not valid UTF-8, so no run can be kept there" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
    told = run([b"plot", bytes(tmp_path) + b"/r\xff"])
    assert told.returncode == 2
    assert b"contains no run" in told.stderr
    assert b"Traceback" not in told.stderr


def test_what_is_to_be_typed_next_can_be_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my run"
    assert main([*TINY, "--out", str(out)]) == 0
    assert f"Next: metarl evaluate '{out}'\n" in capsys.readouterr().out
    assert main([*TINY, "--out", str(out)]) == 2
    assert f"continue the run (metarl resume '{out}')" in capsys.readouterr().err


def test_a_plugin_that_ends_the_program_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def leave(*arguments: object) -> None:
        sys.exit(0)

    for name in ("spec", "environment"):
        with monkeypatch.context() as patch:
            patch.setattr(PointNavigation, name, property(leave) if name == "spec" else leave)
            assert main([*TINY, "--quiet", "--out", str(tmp_path / name)]) == 1
            assert "a plugin has ended the program instead of raising an error: sys.exit(0)" in capsys.readouterr().err
    assert main(["train", "--help"]) == 0
