"""TRPO and ProMP train what a learner's meta-loss says, or refuse it before training."""

import pytest
import torch
from support.synthetic import CONTINUOUS, DISCRETE

from metarl import testing, training
from metarl.advantages import Advantages
from metarl.algorithms.maml import MAML
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.rl2 import RL2
from metarl.networks.options import Network
from metarl.outer.gradient import SGD, Adam
from metarl.outer.objective import require_surrogate
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.training.settings import Settings
from metarl.types import Spec

SMALL = Network(hidden=(6, 6), activation="tanh")
LEARNERS = {
    "maml": MAML(network=SMALL),
    "maml, 3 steps": MAML(steps=3, network=SMALL),
    "maml, log-likelihood": MAML(steps=2, surrogate="log_likelihood", network=SMALL),
    "maml, dice": MAML(steps=2, surrogate="dice", network=SMALL),
    "first-order": MAML(steps=2, first_order=True, network=SMALL),
    "meta-sgd": MAML(learn_step_sizes=True, network=SMALL),
    "anil": MAML(adapt_only=("head",), network=SMALL),
    "large steps": MAML(step_size=5.0, network=SMALL),
    "multitask": MultiTask(network=SMALL),
    "oracle": MultiTask(condition="add", network=SMALL),
    "rl2": RL2(hidden=5),
    "rl2, 3 episodes": RL2(hidden=5, episodes_per_trial=3, advantages=Advantages(discount=0.9, gae_lambda=0.5)),
}
SPECS = [
    Spec((3,), 2, "continuous", 2),
    Spec((3,), 4, "discrete", 2),
    Spec((1, 5, 5), 3, "discrete", 1),
    Spec((2, 6, 6), 1, "continuous", 1),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("name", LEARNERS)
def test_built_in_learners_have_the_gradient_of_the_surrogate(name, spec):
    """In float32, as they are trained; so does what reads images by convolutions."""
    learner = LEARNERS[name].build(spec)
    TRPO().check(learner)
    if learner.memory is None and learner.adaptations:
        ProMP().check(learner)


def test_convolutional_policies_too():
    TRPO().check(MAML(network=Network("conv4", filters=4)).build(SPECS[2]))


CHANGES = {
    "sign": lambda loss, params: -loss,
    "scale": lambda loss, params: 2 * loss,
    "penalty": lambda loss, params: loss + 0.1 * params["head.weight"].square().sum(),
    "zero": lambda loss, params: 0 * loss,
}


def changed(change, spec):
    learner = MAML(network=SMALL).build(spec)

    def meta_loss(params, experience):
        loss, metrics = learner.meta_loss(params, experience)
        return change(loss, params), metrics

    return learner._replace(meta_loss=meta_loss)


@pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("change", CHANGES)
def test_another_objective_is_refused_where_it_would_not_be_trained(change, spec):
    learner = changed(CHANGES[change], spec)
    for outer, name in ((TRPO(), "trpo"), (ProMP(), "promp")):
        with pytest.raises(ValueError, match=rf"^{name} makes the .* this learner's meta_loss is something") as caught:
            outer.check(learner)
        assert "\n" not in str(caught.value)
    Adam().check(learner)
    SGD().check(learner)


def test_an_objective_of_ones_own_never_trains_as_another():
    """It was ignored: a meta-loss of the wrong sign trained to the last digit as the right one."""

    class Reversed:
        def build(self, spec):
            return changed(CHANGES["sign"], spec)

    family, settings = testing.small_family("continuous"), Settings(iterations=2, meta_batch_size=4, device="cpu")
    with pytest.raises(ValueError, match="the cosine of their gradients is -1, their norms are"):
        training.train(Reversed(), family, TRPO(), settings)
    ours, theirs = (
        training.train(algorithm, family, Adam(), settings).params for algorithm in (Reversed(), MAML(network=SMALL))
    )
    assert not any(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_check_draws_from_no_global_generator():
    before = torch.get_rng_state()
    require_surrogate(MAML(network=SMALL).build(CONTINUOUS), "trpo")
    assert torch.equal(torch.get_rng_state(), before)
