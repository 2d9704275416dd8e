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


def _what_was_fixed_is_an_option(config: dict[str, Any]) -> None:
    """Say what formats 1 and 2 did for policies.

    ProMP adapted the weights of all inner steps, and added their penalties up. MAML halved its steps after the first
    one in training, too.
    """
    algorithm, outer = (config[group].get("options") for group in ("algorithm", "outer"))
    if isinstance(outer, dict) and "inner_kl_coefficient" in outer:
        outer |= {"inner_kl_adaptive": True, "inner_kl_over_steps": "sum"}
    of_policies = isinstance(outer, dict) and not outer.keys().isdisjoint(("max_kl", "inner_kl_coefficient"))
    if of_policies and isinstance(algorithm, dict) and algorithm.get("schedule", ()) is None:
        algorithm["schedule"] = [1.0, 0.5]


FIRST_FORMS: dict[str, dict[str, Any]] = {
    "matching": {"scale": 1.0},
    "mann": {"write": "key", "key_strength": 1.0, "learn_key_strength": False},
}
"""By algorithm: what its options were before format 4, when there was no choice, and are not by default since."""


def _forms_were_the_papers(config: dict[str, Any]) -> None:
    """Name the form of learners that had the paper's only."""
    _name_forms(config, FIRST_FORMS)


def _attention_began_at_random(config: dict[str, Any]) -> None:
    """Say how SNAIL's attention began when there was no choice."""
    _name_forms(config, {"snail": {"first_weights": "glorot"}})


def _name_forms(config: dict[str, Any], forms: dict[str, dict[str, Any]]) -> None:
    """Add options that the algorithm does not have yet: what they were, by the algorithm's name."""
    algorithm = config["algorithm"]
    name = str(algorithm.get("reference")).rpartition(":")[2].lower()  # mann, or metarl.algorithms.mann:MANN
    if name in forms and isinstance(algorithm.get("options"), dict):
        algorithm["options"] = forms[name] | algorithm["options"]


STEPS: list[Callable[[dict[str, Any]], None]] = [
    _advantages_belong_to_algorithms,
    _what_was_fixed_is_an_option,
    _forms_were_the_papers,
    _attention_began_at_random,
]
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
