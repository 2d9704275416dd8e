"""The speed suite: every speed that docs/performance.md tells of, in one command.

    python tests/benchmarks/suite.py [--device cuda] [--only sampling growth] [--json suite.json] [--small]

Parts: ceilings (what the machine can do at best), sampling, iteration (of MAML-TRPO), few-shot, growth, and what limits
each number. Each contestant has a process of its own, which tells its peak memory; those of a group take turns, so that
a busy machine slows all of them. Medians are reported, and ratios are what to quote. What strangers took of the
processors meanwhile is told as well. Libraries that are not installed are left out, and nothing is downloaded:
``pip install -e ".[bench]"`` brings them. The file is rewritten after every group, so that a run which is interrupted
keeps what it has; ``python tests/benchmarks/tables.py FILE`` brings it into docs/performance.md.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# As metarl's commands do: threads that wait must not keep a busy machine busy.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

from contest import HERE, compete
from counts import limits
from parts import PARTS
from tables import markdown


def main() -> int:
    """Measure what is asked for; the exit code is 1 where a contestant failed."""
    options = parse()
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(options),
        "small": options.small,
        "device": options.device,
        "machine": machine(options.device),
        "parts": {},
    }
    for part in options.only:
        groups = found["parts"][part] = {}
        for group in PARTS[part](options.device, options.small):
            print(f"{part}: {group.name}", file=sys.stderr, flush=True)
            taking = [each for each in group.contestants if each.make not in options.without]
            rows = compete(group._replace(contestants=taking))
            groups[group.name] = {"sizes": group.sizes, "rows": rows}
            write(options.json, found)
        print(f"\n{markdown(part, groups)}\n", flush=True)
    found["limits"] = limits(found["parts"])
    write(options.json, found)
    print(f"\n{markdown('limits', found['limits'])}")
    failures = [row["failed"] for groups in found["parts"].values() for row in failed(groups)]
    return 1 if failures else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--small", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--without", nargs="+", default=[], metavar="MODULE:FUNCTION", help="contestants to leave out")
    parser.add_argument("--json", type=Path, default=Path("suite.json"))
    return parser.parse_args()


def command(options: argparse.Namespace) -> str:
    """What to type to measure this again."""
    said = ["python", "tests/benchmarks/suite.py", "--device", options.device]
    said += ["--small"] if options.small else []
    said += ["--without", *options.without] if options.without else []
    return shlex.join(said if options.only == list(PARTS) else [*said, "--only", *options.only])


def machine(device: str) -> dict[str, Any]:
    """Ask another process what the numbers depend on: this one stays small."""
    ended = subprocess.run([sys.executable, HERE / "machine.py", device], capture_output=True, text=True, check=True)
    return json.loads(ended.stdout)


def write(path: Path, found: dict[str, Any]) -> None:
    """Write the file anew, so that at any time it holds all that was found."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def failed(groups: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for group in groups.values() for row in group["rows"].values() if "failed" in row]


if __name__ == "__main__":
    sys.exit(main())
