"""Convert configurations of earlier versions to the current format, one format at a time."""

import copy
from collections.abc import Callable
from typing import Any

from metarl.runs.layout import FORMAT

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


def _promp_adapts_by_option(config: dict[str, Any]) -> None:
    """Say what ProMP did in formats 1 and 2: adapt the weights of all inner steps, and add their penalties up."""
    options = config["outer"].get("options")
    if isinstance(options, dict) and "inner_kl_coefficient" in options:
        options |= {"inner_kl_adaptive": True, "inner_kl_over_steps": "sum"}


STEPS: list[Callable[[dict[str, Any]], None]] = [_advantages_belong_to_algorithms, _promp_adapts_by_option]
"""Functions that convert a configuration of format 1, 2, ... to the next format."""
