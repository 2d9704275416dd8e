"""Episodes as a data set of Minari (https://minari.farama.org), one for an evaluation.

Infos have a row for the reset, then one for each step, as those that Minari's collector records: ``task``,
``adaptation_step``, ``deterministic``, ``log_prob``, ``policy_action`` and, where it is reported, ``success``. The
task's parameters are the episode's ``options``, as of a reset.
"""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from metarl.environments import composite, parts_of
from metarl.files import WriteError
from metarl.trained.deploy.playing import Episode
from metarl.trained.recorded.episodes import Played, Recording, places_by_step

FOLDER = "MINARI_DATASETS_PATH"
"""The environment variable that names Minari's folder."""


def check(name: str) -> None:
    """Raise ValueError for a name that no data set can have, or one that there is already."""
    from minari.dataset.minari_dataset import parse_dataset_id  # optional, as everywhere below

    try:
        parse_dataset_id(name)
    except (TypeError, ValueError) as error:  # TypeError: without a version
        raise ValueError(
            f"minari:{name} is no name of a data set: expected minari:NAME-v0, or NAMESPACE/NAME-v0"
        ) from error
    if os.path.lexists(_place(name)):
        raise ValueError(
            f"minari:{name} exists: no data set is overwritten; choose another name, or a higher version, or delete it "
            f"(minari delete {name})"
        )


def write(name: str, recorded: Recording) -> Path:
    """Write a data set into Minari's folder, whole or not at all; return its folder.

    Raises:
        ValueError: Minari cannot write such observations or actions, or there is such a data set.
        WriteError: the folder cannot be written to.
    """
    import minari

    check(name)
    refused = _refused(recorded)
    if refused:
        raise ValueError(f"minari:{name}: {refused}; use a file that ends in .npz")
    place, root = _place(name), _place("")
    try:
        with tempfile.TemporaryDirectory(prefix=".metarl-", dir=root) as folder:
            with _minari_in(folder), warnings.catch_warnings(action="ignore"):  # it asks for authors and links
                minari.create_dataset_from_buffers(
                    name,
                    [_buffer(played, recorded.parameters) for played in recorded.episodes],
                    observation_space=recorded.observation_space,
                    action_space=recorded.action_space,
                    description=(
                        f"Episodes of meta-learned policies on tasks of {type(recorded.family).__name__}, before and "
                        "after adaptation (infos: adaptation_step), written by metarl."
                    ),
                    jpeg_encoding=False,  # it would change pictures
                )
            _make_namespace(name)
            (Path(folder) / name).rename(place)
    except OSError as error:
        raise WriteError(error.errno, f"could not write minari:{name}: {error.strerror or error}") from error
    return place


def read(name: str, task: int | None, deterministic: bool) -> list[list[Episode]]:
    """Return the episodes of one task, a list for each adaptation step; see ``load_episodes``."""
    import minari

    try:
        found = list(minari.load_dataset(name))
        keys = [_key(one) for one in found]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"minari:{name} cannot be read as saved episodes: {error}") from error
    try:
        chosen = places_by_step(keys, task, deterministic)
    except ValueError as error:
        raise ValueError(f"minari:{name}: {error}") from error
    return [[_episode(found[place]) for place in places] for places in chosen]


def _key(episode: Any) -> tuple[int, int, bool]:
    """Return the task of an episode, its adaptation step, and whether it is one of most likely actions."""
    task, step, deterministic = (int(episode.infos[name][0]) for name in ("task", "adaptation_step", "deterministic"))
    return task, step, bool(deterministic)


def _episode(one: Any) -> Episode:
    log_probs = one.infos["log_prob"][1:]
    known = log_probs if np.isfinite(log_probs).all() else None
    drawn = one.infos["policy_action"][1:]
    return Episode(one.observations, one.actions, one.rewards, one.terminations, known, drawn)


def _buffer(played: Played, parameters: Mapping[str, Any]) -> Any:
    from minari.data_collector import EpisodeBuffer

    episode, rows = played.episode, len(played.episode.rewards) + 1
    infos = {
        "task": np.full(rows, played.task),
        "adaptation_step": np.full(rows, played.step),
        "deterministic": np.full(rows, int(played.deterministic)),
        "log_prob": _after_reset(episode.log_probs, np.nan),
        "policy_action": _after_reset(episode.policy_actions, 0),
    }
    if played.success is not None:
        infos["success"] = np.full(rows, played.success)
    return EpisodeBuffer(
        options={name: values[played.task] for name, values in parameters.items()},
        observations=episode.observations,
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=episode.terminated,
        truncations=played.truncated,
        infos=infos,
    )


def _after_reset(values: Any, missing: float) -> np.ndarray[Any, Any]:
    """Return values ``[time, ...]`` with a row for the reset before them."""
    array = np.asarray(values)
    return np.concatenate([np.full_like(array[:1], missing), array])


def _refused(recorded: Recording) -> str | None:
    """Return why Minari's files cannot hold observations; None where they can."""
    parts = parts_of(recorded.observation_space) if composite(recorded.observation_space) else ()
    keys = [key for part in parts for key in part.path if isinstance(key, str)]
    odd = next((key for key in keys if not key or "/" in key or key == "."), None)
    return None if odd is None else f"the name {odd!r} in its observations cannot be one in a file of HDF5"


def _place(name: str) -> Path:
    from minari.storage import get_dataset_path

    return Path(get_dataset_path(name))


def _make_namespace(name: str) -> None:
    from minari.namespace import create_namespace, list_local_namespaces

    namespace = name.rpartition("/")[0]
    if namespace and namespace not in list_local_namespaces():
        create_namespace(namespace)


@contextlib.contextmanager
def _minari_in(folder: str) -> Iterator[None]:
    """Let Minari write into a folder."""
    before = os.environ.get(FOLDER)
    os.environ[FOLDER] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[FOLDER]
        else:
            os.environ[FOLDER] = before
