"""A group folder: a run folder for each seed, ``seed-0``, ``seed-1``, ..., and group.json, which lists the seeds.

Runs that were started one by one into such folders, as by a Slurm array, are a group without group.json too.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metarl import plugins, runs
from metarl.files import typed

GROUP = "group.json"
FORMAT = 1
_MEMBER = re.compile(r"seed-(-?\d+)")


class Group(NamedTuple):
    """The runs of a group, by seed in ascending order."""

    folder: Path
    runs: Mapping[int, Path]


def member(folder: Path, seed: int) -> Path:
    """Return the run folder of a seed."""
    return folder / f"seed-{seed}"


def is_group(folder: Path) -> bool:
    """Return whether a folder holds a group of runs, and is no run itself."""
    if plugins.is_pretrained(folder) or (folder / runs.CONFIG).exists():
        return False
    return (folder / GROUP).exists() or bool(members(folder))


def members(folder: Path) -> dict[int, Path]:
    """Return the run folders in a group folder, by seed in ascending order."""
    named = {int(match[1]): path for path in folder.glob("seed-*") if (match := _MEMBER.fullmatch(path.name))}
    return {seed: named[seed] for seed in sorted(named) if (named[seed] / runs.CONFIG).exists()}


def read_group(folder: Path) -> Group:
    """Read a group.

    Raises:
        RunError: a seed's run is missing, a run is of no seed of the group, or a run was trained with another seed than
            its folder says, or with other options than the first.
    """
    there = members(folder)
    asked = seeds(folder) if (folder / GROUP).exists() else list(there)
    shown = ", ".join(map(str, asked))
    for seed in asked:
        if seed not in there:
            raise runs.RunError(
                f"{folder} is a group of the seeds {shown}, and has no run of seed {seed}: give its training command "
                "again, with --resume"
            )
    for seed, path in there.items():
        if seed not in asked:
            raise runs.RunError(
                f"{path} is of no seed of this group ({shown}): add it (metarl train ... --seeds {seed} --resume), or "
                "move it away"
            )
    configs = {seed: runs.read_config(there[seed]) for seed in asked}
    for seed, config in configs.items():
        if config["settings"].get("seed") != seed:
            raise runs.RunError(f"{there[seed]} was trained with seed {config['settings'].get('seed')}, not {seed}")
    _check_alike(folder, configs)
    return Group(folder, {seed: there[seed] for seed in asked})


def _check_alike(folder: Path, configs: Mapping[int, Mapping[str, Any]]) -> None:
    first, *others = configs
    for seed in others:
        found = runs.apart(configs[first], configs[seed])
        if found is not None:
            raise runs.RunError(
                f"the runs in {folder} differ in more than their seed: {found.name} is {found.one} for seed {first}, "
                f"and {found.other} for seed {seed}"
            )


def seeds(folder: Path) -> list[int]:
    """Read the seeds of group.json. Raises RunError for a damaged file."""
    record = runs.read_record(folder / GROUP)
    asked = record.get("seeds") if isinstance(record, dict) and record.get("format") == FORMAT else None
    if not isinstance(asked, list) or not asked or not all(type(seed) is int for seed in asked):
        raise runs.RunError(f"{folder / GROUP} is damaged: expected format {FORMAT} and a list of seeds")
    return asked


def claimed(folder: Path, resume: bool) -> runs.Claim:
    """Make a group folder, and return its lock.

    Raises RunError if it holds a run, other files, or a group that is not to be resumed, or is called pretrained:NAME.
    """
    runs.check_name(folder)
    if (folder / runs.CONFIG).exists():
        raise runs.RunError(f"{folder} contains a run: a group needs a folder of its own; choose another with --out")
    if is_group(folder) and not resume:
        raise runs.RunError(
            f"{folder} already contains a group of seeds; go on with it (--resume), or choose another folder with --out"
        )
    if not is_group(folder) and folder.is_dir() and (others := _others(folder)):
        raise runs.RunError(f"{folder} is not empty and contains no group ({others[0]}): choose another with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise runs.RunError(f"cannot create the folder {folder}: {error.strerror}") from error
    return runs.claim(folder, "training a group of seeds")


def write_group(folder: Path, asked: Sequence[int]) -> None:
    """Write group.json: the seeds that are there already, and those that are asked for."""
    before = seeds(folder) if (folder / GROUP).exists() else list(members(folder))
    runs.write_record(folder / GROUP, {"format": FORMAT, "seeds": sorted({*before, *asked})})


def _others(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("run.lock"))


def labelled(folders: Sequence[Path]) -> dict[str, Path]:
    """Return folders of runs and groups by name, or by path if two have the same name."""
    named = {plugins.run_folder(folder).resolve().name: folder for folder in folders}
    return named if len(named) == len(folders) else {str(folder): folder for folder in folders}


def go_on(folder: Path) -> str:
    """Return the command that goes on with a group."""
    return f"metarl resume {typed(folder)}"


def standing(folder: Path) -> int:
    """Return the number of iterations in a run's checkpoint; 0 without one. Raises RunError for a damaged one."""
    path = folder / runs.CHECKPOINT
    return int(runs.load_progress(path)["iteration"]) if path.exists() else 0
