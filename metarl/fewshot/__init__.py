"""Families of labelled examples: N-way K-shot classification, and regression of functions and tables.

Data sets are plugins. Start reading in ``classification``. ``grouping`` assigns classes to splits, ``regression`` has
the families of functions and tables, and ``numbers`` converts data to network inputs.
"""

from metarl.fewshot.adapters import from_dataset, from_table
from metarl.fewshot.classification import (
    EPISODE,
    EpisodeTasks,
    NWayKShot,
    Rotations,
    check_counts,
    check_episode,
    episode_sizes,
    is_ragged,
    most_ways,
    picture,
)
from metarl.fewshot.grouping import FRACTIONS, SPLITS, Bounds, Classes, Count, split_classes
from metarl.fewshot.numbers import image_scale, numbers
from metarl.fewshot.regression import POINTS, FunctionTasks, Regression, TableRegression, TableTasks
from metarl.fewshot.standard import Missing, own_units

__all__ = [
    "EPISODE",
    "FRACTIONS",
    "POINTS",
    "SPLITS",
    "Bounds",
    "Classes",
    "Count",
    "EpisodeTasks",
    "FunctionTasks",
    "Missing",
    "NWayKShot",
    "Regression",
    "Rotations",
    "TableRegression",
    "TableTasks",
    "check_counts",
    "check_episode",
    "episode_sizes",
    "from_dataset",
    "from_table",
    "image_scale",
    "is_ragged",
    "most_ways",
    "numbers",
    "own_units",
    "picture",
    "split_classes",
]
