"""Configurations of earlier versions, brought to the present format one step after another."""

import copy
from collections.abc import Callable
from typing import Any

from metarl.runs.layout import FORMAT

JUDGED = ("discount", "gae_lambda")


def migrated(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of any earlier format, or of this one, in the present format."""
    found = copy.deepcopy(config)
    for step in STEPS[found["format"] - 1 :]:
        step(found)
    return found | {"format": FORMAT}


def _advantages_belong_to_algorithms(config: dict[str, Any]) -> None:
    """Format 1 recorded discount and lambda with the tasks' sampling, and rl2's own beside its other options."""
    algorithm, tasks = (config[group].get("options", {}) for group in ("algorithm", "tasks"))
    sampling = tasks.get("sampling")
    options: dict[str, Any] = {}
    for holder in (sampling, algorithm):  # rl2's own are those that acted
        if isinstance(holder, dict):
            options |= {name: holder.pop(name) for name in JUDGED if name in holder}
    if options:
        algorithm["advantages"] = options


STEPS: list[Callable[[dict[str, Any]], None]] = [_advantages_belong_to_algorithms]
"""What changes a configuration of format 1, 2, ... into the next one."""
