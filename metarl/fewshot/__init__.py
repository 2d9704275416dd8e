"""Families of labelled examples: N-way K-shot classification, and regression of functions and tables.

Data sets are plugins. Start reading in ``classification``. ``grouping`` assigns classes to splits, ``regression`` has
the families of functions and tables, and ``numbers`` converts data to network inputs.
"""

from metarl.fewshot.classification import (
    EPISODE,
    EpisodeTasks,
    NWayKShot,
    Rotations,
    check_counts,
    check_episode,
    is_ragged,
    most_ways,
    picture,
)
from metarl.fewshot.grouping import FRACTIONS, SPLITS, Classes, Count, split_classes
from metarl.fewshot.numbers import image_scale, numbers
from metarl.fewshot.regression import POINTS, FunctionTasks, Regression, TableRegression, TableTasks

__all__ = [
    "EPISODE",
    "FRACTIONS",
    "POINTS",
    "SPLITS",
    "Classes",
    "Count",
    "EpisodeTasks",
    "FunctionTasks",
    "NWayKShot",
    "Regression",
    "Rotations",
    "TableRegression",
    "TableTasks",
    "check_counts",
    "check_episode",
    "image_scale",
    "is_ragged",
    "most_ways",
    "numbers",
    "picture",
    "split_classes",
]
