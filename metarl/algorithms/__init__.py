"""Meta-learning algorithms, one file each. ``shared`` holds the code that several of them use.

A learner is a few pure functions of tensors. Algorithms do not import environments, Gymnasium or Stable-Baselines3.
Start reading in ``maml``. ``gradient_learner`` makes a learner of an update rule of your own.
"""

from metarl.algorithms.gradient_learner import gradient_learner
from metarl.algorithms.maml import MAML
from metarl.algorithms.mann import MANN
from metarl.algorithms.matching import Matching
from metarl.algorithms.meta_lstm import MetaLSTM
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.protonet import ProtoNet
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.rl2 import RL2
from metarl.algorithms.siamese import Siamese
from metarl.algorithms.snail import SNAIL

__all__ = [
    "MAML",
    "MANN",
    "RL2",
    "SNAIL",
    "Matching",
    "MetaLSTM",
    "MultiTask",
    "ProtoNet",
    "Reptile",
    "Siamese",
    "gradient_learner",
]
