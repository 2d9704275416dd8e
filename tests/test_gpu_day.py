"""The driver that collects what is to be known of a GPU: each step costs at most itself."""

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent / "benchmarks"


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_day

    return gpu_day


def python(driver: Any, name: str, code: str, limit: float = 60, **fields: Any) -> Any:
    return driver.Step(name, [sys.executable, "-c", code], limit, **fields)


def main(driver: Any, monkeypatch: pytest.MonkeyPatch, out: Path, listed: list[Any], *arguments: str) -> dict[str, Any]:
    """Run the driver over these steps; return the last line of each."""
    monkeypatch.setattr(driver, "steps", lambda device, small, out: listed)
    monkeypatch.setattr(sys, "argv", ["gpu_day.py", "--out", str(out), *arguments])
    before = len(driver.rows(out / "steps.jsonl"))
    code, told = driver.main(), driver.rows(out / "steps.jsonl")
    assert code == any(row["code"] for row in told[before:])
    return {row["name"]: row for row in told}


def test_a_failure_costs_its_own_step_and_what_was_found_is_kept(
    driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = [
        python(driver, "good", "print('chatter'); print('{\"speed\": 3}')"),
        python(driver, "bad", "import sys; print('no JSON'); sys.exit('the cause')"),
        python(driver, "killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        python(driver, "last", "print('[1, 2]')"),
    ]
    found = main(driver, monkeypatch, tmp_path, listed)
    assert [(row["how"], row["code"]) for row in found.values()] == [
        ("ended", 0), ("ended", 1), ("ended", -signal.SIGKILL), ("ended", 0)
    ]  # fmt: skip
    assert found["good"]["found"] == {"speed": 3} and found["last"]["found"] == [1, 2]
    assert found["bad"]["found"] == "no JSON\n" and "the cause" in found["bad"]["told"]


def test_a_step_past_its_limit_ends_with_all_its_processes(
    driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    child = f"import pathlib, time; time.sleep(3); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    found = main(driver, monkeypatch, tmp_path, [python(driver, "hangs", code, limit=1), python(driver, "next", "")])
    assert found["hangs"]["how"] == driver.LATE and found["next"]["code"] == 0
    time.sleep(3.5)
    assert not (tmp_path / "late").exists()


def test_what_has_no_time_is_named_and_done_when_called_again(
    driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    once = f"import pathlib; pathlib.Path({str(mark)!r}).open('a').write('x')"
    listed = [python(driver, "first", once), python(driver, "long", "", least=1e6), python(driver, "bad", "1/0")]
    found = main(driver, monkeypatch, tmp_path, listed)
    assert found["long"]["how"] == driver.SKIPPED and found["bad"]["code"] == 1
    listed[1:] = [python(driver, "long", "print(1)"), python(driver, "bad", "print(2)")]
    assert main(driver, monkeypatch, tmp_path, listed)["long"]["found"] == 1
    assert driver.rows(tmp_path / "steps.jsonl")[-1]["name"] == "long"
    assert main(driver, monkeypatch, tmp_path, listed, "--again")["bad"]["found"] == 2
    assert mark.read_text() == "x"


def test_a_line_that_was_cut_short_is_done_again_and_large_files_are_dropped(
    driver: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "steps.jsonl").write_text('{"name": "one", "how": "en\n')
    kept = tmp_path / "elsewhere" / "progress.csv"
    kept.parent.mkdir()
    code = (
        f"import pathlib; pathlib.Path({str(kept)!r}).write_text('a,b'); "
        f"pathlib.Path({str(tmp_path / 'huge')!r}).write_bytes(bytes({driver.LARGEST + 1}))"
    )
    found = main(driver, monkeypatch, tmp_path, [python(driver, "one", code, kept=kept)])
    assert found["one"]["code"] == 0 and (tmp_path / "one.csv").read_text() == "a,b"
    assert not (tmp_path / "huge").exists()


@pytest.mark.parametrize("small", [True, False])
def test_the_list_holds_every_kind_of_step_once(driver: Any, small: bool, tmp_path: Path) -> None:
    names = [step.name for step in driver.steps("cuda", small, tmp_path)]
    assert len(set(names)) == len(names) and names[:3] == ["machine", "ceilings", "warp"]
    kinds = {name.partition("-")[0] for name in names}
    assert kinds == {
        "machine",
        "ceilings",
        "warp",
        "capture",
        "lanes",
        "processor",
        "iteration",
        "profile",
        "few",
        "tests",
        "train",
    }


def test_an_answer_is_the_json_of_the_last_line(driver: Any) -> None:
    assert driver.answer("x\n" + json.dumps({"a": 1})) == {"a": 1}
    assert driver.answer("") is None and driver.answer("x\ny") == "x\ny"
