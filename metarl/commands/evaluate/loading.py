"""The run that is evaluated, with the options of the evaluation."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import OmitArgPrefixes, arg

from metarl import origins, plugins, runs, training
from metarl.commands import elsewhere
from metarl.commands.evaluate.options import EVALUATE_HELP, EvaluateOptions
from metarl.commands.parsing import parse
from metarl.control import resampled
from metarl.trained import Trained


def evaluated(chosen: EvaluateOptions, folder: Path, changes: list[str] | None) -> Trained:
    """Rebuild the run with the options of the evaluation."""
    recorded = training.recorded(folder, chosen.device, chosen.allow_changes, chosen.allow_code)
    algorithm, trained_on = recorded.algorithm, recorded.tasks
    family = trained_on if chosen.on is None else elsewhere.other_family(chosen.on, trained_on, changes or [])
    if changes is not None:
        fields: list[Any] = [
            ("request", OmitArgPrefixes[EvaluateOptions]),
            ("algorithm", type(algorithm), algorithm),
            ("family", Annotated[type(family), arg(name="tasks")], family),
        ]
        both = parse(dataclasses.make_dataclass("Evaluate", fields), changes, "evaluate", EVALUATE_HELP)
        algorithm, family = (
            plugins.absolute_paths(plugins.checked_options(part)) for part in (both.algorithm, both.family)
        )
    config = runs.read_config(folder)
    if chosen.on is None and not elsewhere.has_other_folder(family, trained_on):
        origins.check_data(config, family, folder)
    algorithm = _with_option(algorithm, "schedule", chosen.schedule)
    family = family if chosen.episodes is None else resampled(family, episodes=chosen.episodes)
    # Changed, or another one, it would have units of its own.
    family = origins.in_recorded_units(config, family)
    origins.check_units(config, family)
    asked = dataclasses.replace(recorded, algorithm=algorithm, tasks=family)
    return training.opened(asked, runs.checkpoint(folder, chosen.checkpoint), chosen.split)


def _with_option(target: Any, name: str, value: Any) -> Any:
    if value is None:
        return target
    if not hasattr(target, name):
        raise ValueError(f"{type(target).__name__} has no option {name}, so --{name} cannot be given")
    return dataclasses.replace(target, **{name: value})
