"""``--start-from``: what meta-training begins with, from another run or from a model of Stable-Baselines3."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metarl import plugins, runs
from metarl.commands import groups
from metarl.control import ControlFamily
from metarl.types import Algorithm, Family, Params

MEANT = ("architecture", "hidden", "activation", "normalise", "downsample", "joint", "norm", "distribution")
"""Options of a network that say what its parameters mean, and need not change the shapes of those that are there."""


def given(path: Path | None, without: Sequence[str], algorithm: Algorithm, family: Family) -> Params | None:
    """Return the parameters and buffers that training starts from; None if the command names none.

    ``path`` is a run folder, ``pretrained:NAME`` or a file of Stable-Baselines3. Of a run they are those of its last
    iteration. ``without`` are the words of ``--start-without``: whole names, or parts of names between dots and colons.

    Raises:
        RunError: the folder holds no run, or a damaged one.
        PluginError: no pretrained run has this name.
        ValueError: the run's network is another one, a word names nothing, nothing is left, or the file is no model
            that the algorithm can start from.
    """
    if path is None:
        if without:
            raise ValueError("--start-without leaves out parameters of --start-from: give that too")
        return None
    if groups.is_group(path):
        raise ValueError(f"--start-from {path}: this is a group of seeds; give one of its runs, such as seed-0 in it")
    of_run = plugins.is_pretrained(path) or path.is_dir()
    return _left(_of_run(path, algorithm) if of_run else _of_model(path, algorithm, family), without, path)


def _of_run(path: Path, algorithm: Algorithm) -> Params:
    folder = plugins.run_folder(path)
    theirs = runs.read_config(folder)["algorithm"]["options"].get("network")
    _check_network(path, theirs, getattr(algorithm, "network", None))
    saved = runs.load_progress(runs.checkpoint(folder, "last"))
    found: Params = saved["params"] | saved["buffers"]
    return found


def _of_model(path: Path, algorithm: Algorithm, family: Family) -> Params:
    if path.suffix != ".zip" and not path.exists():
        raise ValueError(
            f"--start-from {path} does not exist: expected a run folder, pretrained:NAME or a model of "
            "Stable-Baselines3"
        )
    if not isinstance(family, ControlFamily):
        raise ValueError(f"--start-from {path}: a model of Stable-Baselines3 acts, and these tasks are no environments")
    from metarl import sb3  # which may be missing

    return sb3.import_actor(path, algorithm, family)


def _check_network(path: Path, theirs: Any, network: Any) -> None:
    """Raise ValueError for a network of another function, whose parameters could have the same names and shapes."""
    if not isinstance(theirs, dict) or network is None:
        return
    for name in MEANT:
        there, here = theirs.get(name), getattr(network, name, None)
        here = list(here) if isinstance(here, tuple) else here  # as it is read from a file
        if name in theirs and hasattr(network, name) and there != here:
            raise ValueError(
                f"--start-from {path}: the network's {name} is {there} there and {here} here, so its parameters would "
                f"mean something else; choose the same with --algorithm.{name}"
            )


def _left(found: Params, without: Sequence[str], path: Path) -> Params:
    for word in without:
        if not any(_is_named(name, word) for name in found):
            raise ValueError(f"--start-without {word}: {path} has no such parameter; it has {', '.join(found)}")
    left = {name: value for name, value in found.items() if not any(_is_named(name, word) for word in without)}
    if not left:
        raise ValueError(f"--start-without {' '.join(without)}: nothing of {path} is left to start from")
    return left


def _is_named(name: str, word: str) -> bool:
    """Return whether a word is a parameter's name or one of its parts: head is one of step_size:head.weight."""
    return word == name or word in re.split("[.:]", name)
