"""Meta-reinforcement learning on parametrised Gymnasium tasks, in PyTorch, batched over tasks.

The public names below are imported when first used, so that ``import metarl`` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metarl.algorithms.maml import MAML
    from metarl.control import ControlTasks, Sampling
    from metarl.evaluation import evaluate
    from metarl.families import GymnasiumFamily, NWayKShot, Regression, TableRegression
    from metarl.networks import Network
    from metarl.outer import TRPO, Adam, ProMP
    from metarl.plugins import load
    from metarl.trained import Trained, open_run
    from metarl.training import Settings, resume, train
    from metarl.types import Examples, Learner, Params, Rollout, Spec

    __version__: str

__all__ = [
    "MAML",
    "TRPO",
    "Adam",
    "ControlTasks",
    "Examples",
    "GymnasiumFamily",
    "Learner",
    "NWayKShot",
    "Network",
    "Params",
    "ProMP",
    "Regression",
    "Rollout",
    "Sampling",
    "Settings",
    "Spec",
    "TableRegression",
    "Trained",
    "__version__",
    "evaluate",
    "load",
    "open_run",
    "resume",
    "train",
]

_HOMES = {
    "MAML": "metarl.algorithms.maml",
    "TRPO": "metarl.outer",
    "Adam": "metarl.outer",
    "ControlTasks": "metarl.control",
    "Examples": "metarl.types",
    "GymnasiumFamily": "metarl.families",
    "Learner": "metarl.types",
    "Network": "metarl.networks",
    "NWayKShot": "metarl.fewshot",
    "Params": "metarl.types",
    "Regression": "metarl.regression",
    "ProMP": "metarl.outer",
    "Rollout": "metarl.types",
    "Sampling": "metarl.control",
    "Settings": "metarl.training",
    "Spec": "metarl.types",
    "TableRegression": "metarl.regression",
    "Trained": "metarl.trained",
    "evaluate": "metarl.evaluation",
    "load": "metarl.plugins",
    "open_run": "metarl.trained",
    "resume": "metarl.training",
    "train": "metarl.training",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = importlib.import_module("importlib.metadata").version("metarl")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'metarl' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
