"""What a GPU is worth: the speed suite on it, then the tests marked gpu; everything goes into one JSON.

    python tests/benchmarks/gpu.py [--json gpu.json] [--device cpu --small] [--only PART ...] [--skip-tests]

Nothing is downloaded, and metarl need not be installed: PYTHONPATH may hold the repository's root, ``envs`` and
``plugins``. Warp compiles its kernels at the first step, for minutes on a clean machine (``first_seconds``); measuring
comes before testing so that the tests find them compiled.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> int:
    """Measure, test, and write JSON; the exit code is not 0 where a contestant or a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--skip-tests", action="store_true")
    options, others = parser.parse_known_args()
    suite = [sys.executable, str(HERE / "suite.py"), "--device", options.device, "--json", str(options.json), *others]
    measured = subprocess.run(suite, check=False).returncode
    if options.skip_tests or not options.json.exists():
        return measured
    found = json.loads(options.json.read_text(encoding="utf-8")) | {"tests": tests()}
    options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"tests: {json.dumps(found['tests'])}")
    return measured or found["tests"]["exit_code"]


def tests() -> dict[str, Any]:
    """Run the tests marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests"]
    ended = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    lines = ended.stdout.splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"exit_code": ended.returncode, "summary": lines[-1:], "failures": failures}


if __name__ == "__main__":
    sys.exit(main())
