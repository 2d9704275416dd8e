"""All that is to be known of a GPU, in one go of a few minutes: speeds, failures, tests, a curve of learning.

    python tests/benchmarks/gpu_day.py --out FOLDER [--seconds 390] [--device cpu --small] [--only NAME ...] [--again]

Steps run one after another, most telling first, each in a process group of its own with a time limit. After each, a
line of JSON is written and flushed to FOLDER/steps.jsonl: its name, how it ended, its seconds, what it found, and the
end of its errors. So whatever ends the run costs one step. Steps for which no time is left are named. Called again with
the same folder, the driver goes on with the steps that have no line yet; ``--again`` repeats those that failed.

Nothing is downloaded, and metarl need not be installed: PYTHONPATH may hold the repository's root, ``envs`` and
``plugins``. ``--device cpu --small`` runs the whole list at small sizes, to see that it runs.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LARGEST = 15 << 20
"""Bytes of a file that a step may leave behind."""
TOLD = 4000
"""Characters of a step's errors that are kept."""
ENDED, LATE, SKIPPED = "ended", "past its limit", "no time was left"


class Step(NamedTuple):
    """Something to run, in a process of its own."""

    name: str
    command: list[str]
    limit: float
    """Seconds after which it is killed."""
    least: float = 5
    """Seconds that must be left for it to be started."""
    kept: Path | None = None
    """A file that is copied to the folder afterwards, under the step's name."""


def steps(device: str, small: bool, out: Path) -> list[Step]:
    """Return the steps in their order."""
    python, asked = sys.executable, ["--device", device, *(["--small"] if small else [])]

    def measured(name: str, limit: float, *arguments: str) -> Step:
        title = "-".join([name, *arguments])
        return Step(title, [python, str(HERE / "gpu_steps.py"), name, *arguments, *asked], limit)

    def tests(name: str, limit: float, *arguments: str) -> Step:
        chosen = ["-m", "gpu", "--collect-only"] if small else ["-m", "gpu"]
        return Step(name, [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen, *arguments], limit)

    def trained(name: str, *arguments: str) -> Step:
        run = Path(tempfile.gettempdir()) / "metarl-gpu-day" / name
        settings = ["--iterations", "2", "--meta-batch-size", "2"] if small else []
        command = [python, "-m", "metarl", "train", *arguments, "--device", device, "--out", str(run), "--overwrite"]
        limit, least = (120, 5) if small else (600, 40)
        command += ["--quiet", *settings]
        return Step(f"train-{name}", command, limit, least, run / "progress.csv")

    lanes = ("8", "16") if small else ("800", "2048", "8192", "32768")
    robots = ("half-cheetah",) if small else ("half-cheetah", "ant")
    # Compiling takes minutes on a busy machine, and so does collecting all tests; both are tried elsewhere.
    little = ["--small", "--without", "few_shot:compiled"] if small else []
    suite = [python, str(HERE / "suite.py"), "--device", device, "--only", "few-shot", *little]
    places = "tests/test_gpu.py" if small else "tests"
    short = ["--tasks.sampling.episodes", "2", "--tasks.sampling.horizon", "5"] if small else []
    return [
        measured("machine", 60),
        measured("ceilings", 60),
        measured("warp", 240),
        *(measured("capture", 120, what) for what in ("robot-step", "policy", "update", "iteration")),
        *(measured("lanes", 60, robot, count) for robot in robots for count in lanes),
        *(measured("processor", 60, robot, lanes[0]) for robot in robots),
        *(measured("iteration", 90, what) for what in ("half-cheetah", "navigation", "promp")),
        measured("profile", 90, "half-cheetah"),
        Step("few-shot", [*suite, "--json", str(out / "few_shot.json")], 240),
        tests("tests", 240, "-k", "not compile and not warp", places),
        tests("tests-warp", 240, "tests/envs/mujoco/test_warp.py"),
        tests("tests-compiled", 240, "-k", "compile", places),
        trained("half-cheetah-direction", "maml", "half-cheetah-direction", *short),
        trained("omniglot", "maml", "omniglot")
        if os.environ.get("METARL_DATA")
        else trained("sinusoid", "maml", "sinusoid"),
    ]


def main() -> int:
    """Run what is left to run; the exit code is 1 where a step failed."""
    options = parse()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    record, deadline = out / "steps.jsonl", time.monotonic() + options.seconds
    done = {row["name"] for row in rows(record) if row["how"] == ENDED and (not row["code"] or not options.again)}
    failed = 0
    for step in steps(options.device, options.small, out):
        if step.name in done or (options.only and step.name not in options.only):
            continue
        row = run(step, deadline - time.monotonic())
        if step.kept and step.kept.exists():
            shutil.copyfile(step.kept, out / f"{step.name}{step.kept.suffix}")
        failed += row["how"] != SKIPPED and bool(row["code"])
        tell(record, row)
    for path in (path for path in out.rglob("*") if path.is_file() and path.stat().st_size > LARGEST):
        path.unlink()
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=390)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these steps only")
    parser.add_argument("--again", action="store_true", help="repeat steps that failed")
    return parser.parse_args()


def rows(record: Path) -> list[dict[str, Any]]:
    """Return the lines written so far; one that was cut short is not there."""
    found = []
    for line in record.read_text(encoding="utf-8").splitlines() if record.exists() else []:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def run(step: Step, left: float) -> dict[str, Any]:
    """Run a step in a process group of its own, for at most the seconds that are left; return its line."""
    row: dict[str, Any] = {"name": step.name, "how": SKIPPED, "code": None, "seconds": 0.0, "found": None, "told": ""}
    if left < step.least:
        return row
    began = time.monotonic()
    # Files, not pipes: a pipe that a grandchild keeps open would hold the driver up.
    with (
        tempfile.TemporaryFile("w+", errors="replace") as answers,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=environment(), stdout=answers, stderr=errors, start_new_session=True
        )
        try:
            row |= {"code": process.wait(min(step.limit, left)), "how": ENDED}
        except subprocess.TimeoutExpired:
            row |= {"code": -signal.SIGKILL, "how": LATE}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        row["seconds"] = round(time.monotonic() - began, 2)
        answers.seek(0)
        errors.seek(0)
        row["found"], row["told"] = answer(answers.read()), errors.read()[-TOLD:]
    return row


def environment() -> dict[str, str]:
    """Return the variables of a step: what the tests share can be imported."""
    paths = [os.environ.get("PYTHONPATH"), str(ROOT / "tests")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def answer(text: str) -> Any:
    """Return the JSON of the last line; without any, the end of the text."""
    lines = text.strip().splitlines()
    with suppress(json.JSONDecodeError):
        return json.loads(lines[-1]) if lines else None
    return text[-TOLD:]


def tell(record: Path, row: dict[str, Any]) -> None:
    """Append a line, so that it is on the disk whatever comes next."""
    with record.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())
    how = row["how"] if row["how"] != ENDED else "failed" if row["code"] else "ok"
    print(f"{row['name']}: {how}, {row['seconds']} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
