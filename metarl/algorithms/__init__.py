"""Meta-learning algorithms, one file each. ``gradient`` holds more of them, ``shared`` code that several of them use.

A learner is a few pure functions of tensors. Algorithms do not import environments, Gymnasium or Stable-Baselines3.
Start reading in ``maml``. ``gradient_learner`` makes a learner of an update rule of your own, and
``normalise_observations`` lets any learner read normalised observations.
"""

from metarl.algorithms.gradient.bmaml import BMAML, particle_outputs
from metarl.algorithms.gradient.cavia import CAVIA
from metarl.algorithms.gradient.imaml import IMAML
from metarl.algorithms.gradient.leap import Leap
from metarl.algorithms.gradient.meta_lstm import MetaLSTM
from metarl.algorithms.gradient_learner import gradient_learner
from metarl.algorithms.maml import MAML
from metarl.algorithms.mann import MANN
from metarl.algorithms.matching import Matching
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.normalising import Normalised, normalise_observations
from metarl.algorithms.protonet import ProtoNet
from metarl.algorithms.reptile import Reptile
from metarl.algorithms.rl2 import RL2
from metarl.algorithms.shared.cells import CellChoice
from metarl.algorithms.siamese import Siamese
from metarl.algorithms.snail import SNAIL

__all__ = [
    "BMAML",
    "CAVIA",
    "IMAML",
    "MAML",
    "MANN",
    "RL2",
    "SNAIL",
    "CellChoice",
    "Leap",
    "Matching",
    "MetaLSTM",
    "MultiTask",
    "Normalised",
    "ProtoNet",
    "Reptile",
    "Siamese",
    "gradient_learner",
    "normalise_observations",
    "particle_outputs",
]
