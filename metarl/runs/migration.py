"""Convert configurations and checkpoints of earlier versions to the current format, one format at a time."""

import copy
from collections.abc import Callable
from typing import Any

from metarl.runs.layout import CHECKPOINT_FORMAT, FORMAT

JUDGED = ("discount", "gae_lambda")


def migrated(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of any format in the current one."""
    found = copy.deepcopy(config)
    for step in STEPS[found["format"] - 1 :]:
        step(found)
    return found | {"format": FORMAT}


def _advantages_belong_to_algorithms(config: dict[str, Any]) -> None:
    """Move discount and lambda. Format 1 recorded them with the tasks' sampling, and rl2's own with its options."""
    algorithm, tasks = (config[group].get("options", {}) for group in ("algorithm", "tasks"))
    sampling = tasks.get("sampling")
    options: dict[str, Any] = {}
    for holder in (sampling, algorithm):  # rl2's own come last: it used those
        if isinstance(holder, dict):
            options |= {name: holder.pop(name) for name in JUDGED if name in holder}
    if options:
        algorithm["advantages"] = options


STEPS: list[Callable[[dict[str, Any]], None]] = [_advantages_belong_to_algorithms]
"""Functions that convert a configuration of format 1, 2, ... to the next format."""


def migrated_checkpoint(contents: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of a checkpoint of any format in the current one. Tensors are not copied."""
    found = dict(contents)
    for step in CHECKPOINT_STEPS[found["format"] - 1 :]:
        step(found)
    return found | {"format": CHECKPOINT_FORMAT}


def _learners_may_have_buffers(contents: dict[str, Any]) -> None:
    """Add the buffers, which no learner had in format 1."""
    contents["buffers"] = {}


CHECKPOINT_STEPS: list[Callable[[dict[str, Any]], None]] = [_learners_may_have_buffers]
"""Functions that convert a checkpoint of format 1, 2, ... to the next format."""
