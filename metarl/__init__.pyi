"""The public names, one a line: ``__init__.py`` imports each from the module named here when it is first used."""

from metarl.algorithms import MAML as MAML
from metarl.control import ControlTasks as ControlTasks
from metarl.control import GymnasiumFamily as GymnasiumFamily
from metarl.control import Sampling as Sampling
from metarl.evaluation import evaluate as evaluate
from metarl.fewshot import NWayKShot as NWayKShot
from metarl.fewshot import Regression as Regression
from metarl.fewshot import TableRegression as TableRegression
from metarl.fewshot import from_dataset as from_dataset
from metarl.fewshot import from_table as from_table
from metarl.networks import Network as Network
from metarl.outer import SGD as SGD
from metarl.outer import TRPO as TRPO
from metarl.outer import Adam as Adam
from metarl.outer import ProMP as ProMP
from metarl.outer import chain as chain
from metarl.outer import meta_gradient as meta_gradient
from metarl.plugins import Schedule as Schedule
from metarl.plugins import linear as linear
from metarl.plugins import load as load
from metarl.plugins import stepwise as stepwise
from metarl.trained import AdaptedPolicy as AdaptedPolicy
from metarl.trained import Episode as Episode
from metarl.trained import FewShotModel as FewShotModel
from metarl.trained import Trained as Trained
from metarl.trained import load_episodes as load_episodes
from metarl.trained import load_model as load_model
from metarl.trained import save_rollouts as save_rollouts
from metarl.training import Experiment as Experiment
from metarl.training import Settings as Settings
from metarl.training import open_run as open_run
from metarl.training import recipe as recipe
from metarl.training import resume as resume
from metarl.training import save_run as save_run
from metarl.training import train as train
from metarl.tuning import Search as Search
from metarl.tuning import Tuned as Tuned
from metarl.tuning import tune as tune
from metarl.types import Examples as Examples
from metarl.types import Learner as Learner
from metarl.types import Params as Params
from metarl.types import Rollout as Rollout
from metarl.types import Spec as Spec

__version__: str
