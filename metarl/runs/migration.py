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


FIRST_FORMS: dict[str, dict[str, Any]] = {
    "matching": {"scale": 1.0},
    "mann": {"write": "key", "key_strength": 1.0, "learn_key_strength": False},
}
"""By algorithm: what its options were before format 3, when there was no choice, and are not by default since."""


def _forms_were_the_papers(config: dict[str, Any]) -> None:
    """Name the form of learners that had the paper's only."""
    algorithm = config["algorithm"]
    name = str(algorithm.get("reference")).rpartition(":")[2].lower()  # mann, or metarl.algorithms.mann:MANN
    if name in FIRST_FORMS and isinstance(algorithm.get("options"), dict):
        algorithm["options"] = FIRST_FORMS[name] | algorithm["options"]


STEPS: list[Callable[[dict[str, Any]], None]] = [_advantages_belong_to_algorithms, _forms_were_the_papers]
"""Functions that convert a configuration of format 1, 2, ... to the next format."""
