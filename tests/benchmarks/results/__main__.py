"""The results page's queue, store and page, as one command:

    python tests/benchmarks/results work [--workers 2] [--row NAME]   train what is missing; stop and start at any time
    python tests/benchmarks/results list                              how far every row is
    python tests/benchmarks/results collect RUN ... [--row NAME]      bring trainings from elsewhere into the store
    python tests/benchmarks/results page                              write docs/results.md, docs/study.md, pictures

`make results` is the first of them, and then the page.
"""

import argparse
import difflib
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when it is imported

import page
import working
from rows import Job, Row, jobs, rows
from store import StoreError, collect, find_job, ship

from metarl.plugins import PluginError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code."""
    chosen = _parser().parse_args(arguments)
    try:
        code = int(chosen.run(chosen))
        sys.stdout.flush()  # here, where a closed pipe is caught
        return code
    except BrokenPipeError:  # results list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, PluginError) as error:
        print(f"results: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="results", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    work = commands.add_parser("work", help="train what is missing")
    work.add_argument("--workers", type=int, default=2, help="trainings at a time (default: 2)")
    work.add_argument("--row", help="this row only")
    work.set_defaults(run=_work)
    listed = commands.add_parser("list", help="how far every row is")
    listed.set_defaults(run=_list)
    one = commands.add_parser("one", help="one training, in this process; what the workers do")
    one.add_argument("row")
    one.add_argument("seed", type=int)
    one.set_defaults(run=_one)
    for command in (work, listed, one):
        command.add_argument(
            "--work", type=Path, default=working.WORK, help="where trainings are (default: runs/results)"
        )
    brought = commands.add_parser("collect", help="bring trainings from elsewhere into the store")
    brought.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    brought.add_argument("--row", help="the row that they belong to (default: the one with their options)")
    brought.add_argument(
        "--differing", action="store_true", help="also with other options than the row's, which is noted"
    )
    brought.set_defaults(run=_collect)
    written = commands.add_parser("page", help="write the pages and pictures")
    written.set_defaults(run=_page)
    return parser


def _named(name: str | None) -> list[Row]:
    known = rows()
    found = [row for row in known if name in (None, row.name)]
    if found and found[0].of is not None:
        found = [row for row in known if row.name == found[0].of]  # one training, scored twice
    if not found:
        near = difflib.get_close_matches(str(name), [row.name for row in known], n=2)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ";"
        raise ValueError(f"no row is called {name!r}{hint} `python tests/benchmarks/results list` shows all")
    return found


def _work(chosen: argparse.Namespace) -> int:
    if chosen.workers < 1:
        raise ValueError(f"--workers {chosen.workers}: expected at least 1")
    failed = working.work_through(jobs(_named(chosen.row)), chosen.workers, chosen.work)
    _page(chosen)
    return 1 if failed else 0


def _list(chosen: argparse.Namespace) -> int:
    for job in jobs(rows()):
        print(
            f"{job.name:<40} {working.state(job, chosen.work).told:<28} metarl train {job.row.train} --seed {job.seed}"
        )
    return 0


def _one(chosen: argparse.Namespace) -> int:
    return working.run(Job(_named(chosen.row)[0], chosen.seed), chosen.work)


def _collect(chosen: argparse.Namespace) -> int:
    known, failed = jobs(_named(chosen.row)), 0
    for source in chosen.runs:
        try:
            job = find_job(source, known)
            print(f"{source}: {collect(source, job, differing=chosen.differing)}")
            if (shipped := ship(job)) is not None:
                print(f"ships as {shipped}")
        except (ValueError, StoreError) as error:  # the others are collected all the same
            print(f"results: {' '.join(str(error).split())}", file=sys.stderr)
            failed = 2
    _page(chosen)
    return failed


def _page(chosen: argparse.Namespace) -> int:
    for path in page.write():
        print(f"wrote {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
