"""Lake's one-shot classification on Omniglot: 20 characters of one alphabet, drawn once by one person, told apart.

Lake et al. (2015, Science 350) published 20 such runs with the data set, in ``all_runs.zip``. Where they are missing,
episodes can be dealt by the same protocol. These are not the published ones.
"""

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Generator, Tensor

from metarl.fewshot import EpisodeTasks
from metarl.seeding import uniform
from metarl_plugins import alphabets, decoding

RUNS, WAYS = 20, 20
LABELS = "class_labels.txt"
"""Of each run: its lines name a test drawing and the training drawing of the same character."""
PLACES = ("all_runs.zip", "all_runs", "one-shot-classification/all_runs.zip", "one-shot-classification/all_runs")
"""Where the published runs may lie in the folder of the data set; as an archive, or extracted."""


def dealt(
    images: Tensor, characters: Sequence[str], chosen: Sequence[int], drawers: int, number: int, generator: Generator
) -> EpisodeTasks:
    """Deal episodes by Lake's protocol: support drawings of 20 characters by one person, query drawings by another.

    Each task has characters of one alphabet that has at least 20. Task parameters: ``classes`` ``[task, way]`` and
    ``drawers`` ``[task, 2]``.

    Args:
        images: ``[item, ...]``: the drawings of each character, one after another, by the same people in each alphabet.
        characters: ``ALPHABET/characterNN``, by number.
        chosen: The numbers of the characters that may be dealt.
        drawers: Drawings of each character.
        number: How many tasks.
        generator: Of random numbers.
    """
    large = list(alphabets.large(characters, chosen, WAYS).values())
    most = max(map(len, large), default=0)
    if most == 0:
        raise ValueError(f"no alphabet among the characters for evaluation has {WAYS} characters")
    table = torch.tensor([members + [-1] * (most - len(members)) for members in large])
    # Always float64, so that the tasks of a seed do not depend on torch's default dtype.
    numbers = uniform(generator, number, most + 3, dtype=torch.float64)
    of_task = table[(numbers[:, -1] * len(large)).long()]
    order = numbers[:, :most].masked_fill(of_task < 0, 2.0).argsort(dim=1)[:, :WAYS]
    classes = of_task.gather(1, order)
    first = (numbers[:, -2] * drawers).long()
    second = (first + 1 + (numbers[:, -3] * (drawers - 1)).long()) % drawers
    support, query = ((drawers * classes + who.unsqueeze(1)).unsqueeze(-1) for who in (first, second))
    parameters = {"classes": classes, "drawers": torch.stack([first, second], dim=1)}
    return EpisodeTasks(images, support, query, parameters, decoding.WHITE)


def published(folder: Path, size: int, number: int) -> EpisodeTasks:
    """Return the first ``number`` of the published runs. Task parameters: ``run`` ``[task]``, from 1 on.

    Raises:
        ValueError: they are not in the folder, are damaged, or there are not so many.
    """
    if number > RUNS:
        raise ValueError(f"Lake published {RUNS} one-shot runs, and {number} were asked for: --tasks {RUNS}, or fewer")
    found = next((path for place in PLACES if (path := folder / place).exists()), None)
    if found is None:
        raise ValueError(
            f"{folder} does not hold Lake's runs: fetch all_runs.zip from https://github.com/brendenlake/omniglot (its "
            "folder python/one-shot-classification), or take --tasks.test-episodes alphabet, which deals episodes by "
            "the same protocol"
        )
    stat = found.stat()
    images = _images(found, size, (stat.st_mtime_ns, stat.st_size))
    first = 2 * WAYS * torch.arange(number).unsqueeze(1) + torch.arange(WAYS)
    return EpisodeTasks(
        images, first.unsqueeze(-1), (first + WAYS).unsqueeze(-1), {"run": 1 + torch.arange(number)}, decoding.WHITE
    )


@lru_cache(maxsize=2)
def _images(path: Path, size: int, version: tuple[int, int]) -> Tensor:
    """Return ``[run * 40, 1, size, size]``, ink 255: of each run 20 training drawings, then those that match them."""
    if path.is_dir():
        return _decoded(path, size, lambda name: (path / name).read_bytes())
    try:
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
            return _decoded(path, size, archive.read)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no zip archive, or was cut short: {error}; fetch it again") from error


def _decoded(path: Path, size: int, read: Callable[[str], bytes]) -> Tensor:
    names: list[str] = []
    try:
        for run in range(1, RUNS + 1):
            matches = _matches(read(f"run{run:02}/{LABELS}").decode())
            if len(matches) != WAYS or len(set(matches.values())) != WAYS:
                raise ValueError(f"{path}: run {run} pairs {len(matches)} characters, expected {WAYS}; fetch it again")
            names += [*matches, *matches.values()]
        contents = {name: read(name) for name in names}
    except (KeyError, FileNotFoundError) as error:
        raise ValueError(f"{path} is not complete: {error}; fetch it again") from error
    return torch.from_numpy(255 - decoding.decode(names, contents.__getitem__, size, "L"))


def _matches(text: str) -> Mapping[str, str]:
    """Return the test drawing of each training drawing, in the order of the latter's names."""
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    return dict(sorted((training, test) for test, training in pairs))
