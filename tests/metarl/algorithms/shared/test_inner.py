"""Inner gradient steps against torch's own optimisers, one task at a time."""

import pytest
import torch
from support import slow_inner, synthetic
from support.synthetic import CONTINUOUS, DISCRETE

from metarl import objectives
from metarl.algorithms.shared import inner
from metarl.algorithms.shared.inner import Tuned
from metarl.networks import stack
from metarl.networks.options import Network
from metarl.types import Rollout, Spec, inputs_of

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(autouse=True)
def one_thread(two_threads):
    """More would only wait for each other on networks of this size."""
    torch.set_num_threads(1)


REGRESSION, CLASSIFICATION = Spec((3,), 2, "regression"), Spec((3,), 4, "classification")
SPECS = pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION, CONTINUOUS, DISCRETE], ids=lambda spec: spec.kind)


def prepared(spec, seed=0):
    model = Network(hidden=(5,), activation="tanh").build(spec)
    generator = torch.Generator().manual_seed(seed)
    make = synthetic.rollout if spec.control else synthetic.examples
    return model, model.init(generator), make(spec, 4, generator)


@SPECS
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_steps_are_those_of_torchs_optimisers_on_each_task_alone(spec, optimiser):
    model, params, batch = prepared(spec)
    stacked = stack(params, 4)
    tuned = Tuned(stacked, inner.no_moments(stacked) if optimiser == "adam" else None, 0, None)
    for _ in range(5):
        tuned = inner.tune(spec, model, tuned, inputs_of(batch), batch, 0.1)
    assert tuned.step == 5
    for task in range(4):
        own = slow_inner.task_of(batch, task)
        expected = slow_inner.train(spec.kind, params, [own] * 5, optimiser, 0.1)[-1]
        for name, value in expected.items():
            assert not torch.equal(value, params[name])
            torch.testing.assert_close(tuned.params[name][task], value, rtol=1e-9, atol=1e-11)


def test_a_first_step_of_adam_goes_as_far_in_every_direction():
    model, params, batch = prepared(REGRESSION)
    stacked = stack(params, 4)
    before = Tuned(stacked, inner.no_moments(stacked), 0, None)
    after = inner.tune(REGRESSION, model, before, batch.inputs, batch, 0.25)
    for name, value in after.params.items():
        torch.testing.assert_close((value - stacked[name]).abs(), torch.full_like(value, 0.25), rtol=1e-4, atol=0)
    assert after.moments is not None
    torch.testing.assert_close(after.moments.weight, torch.full((4,), 0.001))


@SPECS
def test_the_loss_of_a_batch_is_that_of_its_kind(spec):
    model, params, batch = prepared(spec)
    found = objectives.task_loss(spec, model.apply(stack(params, 4), inputs_of(batch)), batch)
    expected = [slow_inner.loss(spec.kind, params, slow_inner.task_of(batch, task)) for task in range(4)]
    torch.testing.assert_close(found, torch.stack(expected))
    assert isinstance(batch, Rollout) == spec.control


def test_no_graph_is_promised_that_is_not_kept():
    model, params, batch = prepared(REGRESSION)
    stacked = stack({name: value.requires_grad_() for name, value in params.items()}, 4)
    with pytest.raises(ValueError, match="is not differentiated, as trpo and promp would; use sgd or adam"):
        inner.tune(REGRESSION, model, Tuned(stacked, None, 0, None), batch.inputs, batch, 0.1)
    with torch.no_grad():
        tuned = inner.tune(REGRESSION, model, Tuned(stacked, None, 0, None), batch.inputs, batch, 0.1)
    assert not any(value.requires_grad for value in tuned.params.values())
