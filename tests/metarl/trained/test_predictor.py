"""Few-shot runs adapt to tasks and to examples of one's own, as control runs do to tasks."""

import pickle

import numpy as np
import pytest
import torch
from torch import Generator

import metarl
from metarl import Examples, Settings, evaluate
from metarl.algorithms import MAML
from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.protonet import ProtoNet
from metarl.evaluation import Adapted
from metarl.fewshot import NWayKShot, Regression
from metarl.networks import Network
from metarl_envs.navigation import PointNavigation

SETTINGS = Settings(iterations=2, meta_batch_size=2, device="cpu")
LINES = Regression(lambda inputs, slope: slope * inputs, {"slope": (-1.0, 1.0)}, shots=5)
DOTS = NWayKShot(torch.rand(60, 4, generator=Generator().manual_seed(0)), torch.arange(60) // 6, ways=2, shots=2)


@pytest.fixture(scope="module")
def regression() -> metarl.Trained:
    return metarl.train(MAML(network=Network(hidden=(8,)), step_size=0.05), LINES, settings=SETTINGS)


@pytest.fixture(scope="module")
def classification() -> metarl.Trained:
    return metarl.train(ProtoNet(network=Network(hidden=(8,))), DOTS, settings=SETTINGS)


def test_adapting_is_what_evaluation_scores(regression: metarl.Trained) -> None:
    adapted = regression.adapt(regression.tasks(4), steps=2)
    losses = []
    for step in adapted:
        outputs, _ = regression.learner.predict(step.state, step.examples.inputs)
        losses.append((outputs - step.examples.targets).square().mean((1, 2)))
    found = evaluate(regression.learner, regression.params, LINES, tasks=4, steps=2).scores["loss"]
    torch.testing.assert_close(torch.stack(losses), found)
    with pytest.raises(ValueError, match="needs rollouts"):
        _ = adapted[0].rollout


def test_examples_of_ones_own_are_learned(regression: metarl.Trained) -> None:
    inputs = torch.linspace(-2, 2, 9).reshape(1, -1, 1)
    own = Examples(inputs=inputs, targets=0.7 * inputs)
    errors = []
    for steps in (0, 1, 5, 20):
        predict = regression.predictor(own, steps)
        errors.append(float((predict(inputs[0]) - own.targets[0]).square().mean()))
        state = regression.learner.begin(regression.params, torch.zeros(1, 1))
        for _ in range(steps):
            state = regression.learner.adapt(state, own)
        assert torch.allclose(predict(inputs[0]), regression.learner.predict(state, inputs)[0][0])
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.2 * errors[0]
    predict = regression.predictor(own, 5)
    assert predict(np.array([0.5])).shape == (1,)
    assert predict(np.zeros((3, 2, 1), dtype=np.float64)).shape == (3, 2, 1)
    with pytest.raises(ValueError, match=r"inputs have shape \(2,\) where \(\.\.\., 1,\)"):
        predict([0.1, 0.2])


def test_classes_have_probabilities(classification: metarl.Trained) -> None:
    task = classification.tasks(1)
    after = classification.adapt(task)[-1]
    found = classification.predictor(task)(after.examples.inputs[0])
    outputs, _ = classification.learner.predict(after.state, after.examples.inputs)
    assert torch.allclose(found, outputs[0].softmax(-1), atol=1e-6)
    assert torch.allclose(found.sum(-1), torch.ones(len(found)))


def test_one_predictor_is_for_one_task(regression: metarl.Trained) -> None:
    with pytest.raises(ValueError, match="for one task, not for 2"):
        regression.predictor(regression.tasks(2))
    with pytest.raises(ValueError, match="it is for regression; use predictor"):
        regression.policy(regression.tasks(1))
    with pytest.raises(ValueError, match="0 steps or more, not -1"):
        regression.adapt(regression.tasks(1), steps=-1)


def test_what_reads_descriptors_needs_tasks() -> None:
    told = MultiTask(condition="concatenate", network=Network(hidden=(8,)))
    run = metarl.train(told, LINES, settings=SETTINGS)
    inputs = torch.zeros(1, 3, 1)
    with pytest.raises(ValueError, match="reads its tasks' descriptors"):
        run.predictor(Examples(inputs=inputs, targets=inputs))
    assert run.predictor(run.tasks(1))(inputs[0]).isfinite().all()


def test_policies_adapt_to_tasks_alone() -> None:
    run = metarl.train(MAML(network=Network(hidden=(8,))), PointNavigation(), settings=SETTINGS)
    inputs = torch.zeros(1, 3, 2)
    with pytest.raises(ValueError, match="not to examples"):
        run.adapt(Examples(inputs=inputs, targets=inputs))
    with pytest.raises(ValueError, match="this run trains policies"):
        run.predictor(run.tasks(1))
    found = run.adapt(run.tasks(1))[0]
    assert isinstance(found, Adapted)
    with pytest.raises(ValueError, match="have episodes and no query set"):
        _ = found.examples


def test_predictors_are_pickled(regression: metarl.Trained) -> None:
    predict = regression.predictor(regression.tasks(1))
    inputs = torch.randn(4, 1, generator=Generator().manual_seed(0))
    assert pickle.loads(pickle.dumps(predict))(inputs).equal(predict(inputs))
