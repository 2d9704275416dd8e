"""Learning from labelled examples by a recurrent network: what it is shown and when, whatever the network."""

import math
from dataclasses import replace
from operator import itemgetter
from typing import NamedTuple

import pytest
import torch
from support import synthetic
from support.synthetic import chosen, few_shot, initial
from torch import Tensor
from torch.nn import functional

from metarl.algorithms.mann import MANN
from metarl.algorithms.rl2 import RL2
from metarl.algorithms.shared import recurrent
from metarl.algorithms.shared.recurrent import Core
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.types import Examples, Experience, Spec, each_tensor

pytestmark = pytest.mark.usefixtures("float64")

CLASSIFICATION, REGRESSION = Spec((3,), 4, "classification"), Spec((2, 2), 2, "regression")
every_spec = pytest.mark.parametrize("spec", [CLASSIFICATION, REGRESSION], ids=lambda spec: spec.kind)
SMALL = {"slots": 5, "width": 2, "controller": 3, "heads": 2}
ALGORITHMS = {
    "mann": MANN(**SMALL),
    "mann, query": MANN(**SMALL, loss_on="query"),
    "rl2": RL2(hidden=3),
    "rl2, query": RL2(hidden=3, loss_on="query"),
}
every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
both_networks = pytest.mark.parametrize("name", ["mann", "rl2"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def outputs(learner, params, given):
    state = learner.begin(params, given.descriptors)
    for support in given.supports:
        state = learner.adapt(state, support)
    return learner.predict(state, given.query.inputs)[0]


def said(learner, params, support):
    """What is said of each support item, before it is told."""
    return learner.memory.unroll(learner.begin(params, torch.zeros(len(support.inputs), 0)), support)[0]


class Steps(NamedTuple):
    count: Tensor


def echo(spec, weights):
    """A core that repeats what it is given, times fixed weights, and counts steps: 1000 for each step before."""
    weights = torch.tensor(weights)

    def run(params, hidden, inputs):
        time = torch.arange(inputs.shape[1], dtype=inputs.dtype)
        count = hidden.count.unsqueeze(1) + time
        return inputs @ weights + 1000 * count.unsqueeze(-1), Steps(hidden.count + len(time))

    core = Core(lambda rng: {}, lambda params, rows: Steps(torch.zeros(rows)), run)
    learner = recurrent.few_shot(spec, core, "sequence")
    return learner, learner.begin({"some": torch.zeros(1)}, torch.zeros(1, 0))


def test_each_item_comes_with_the_label_of_the_one_before():
    """Inputs are (item, one-hot label), which the echo turns into (item, 10 label_0 + label_1)."""
    learner, state = echo(Spec((1,), 2, "classification"), [[1.0, 0.0], [0.0, 10.0], [0.0, 1.0]])
    shown = Examples(inputs=torch.tensor([[[1.0], [2.0], [3.0]]]), targets=torch.tensor([[0, 1, 1]]))
    first, state = learner.memory.unroll(state, shown)
    assert first.tolist() == [[[1, 0], [1002, 1010], [2003, 2001]]]
    again, _ = learner.memory.unroll(state, shown)
    assert again.tolist() == [[[3001, 3001], [4002, 4010], [5003, 5001]]]
    asked, after = learner.predict(state, torch.tensor([[[7.0], [8.0]]]))
    assert asked.tolist() == [[[3007, 3001], [3008, 3001]]]
    assert after is state


def test_a_value_comes_with_a_sign_that_it_was_told():
    """Inputs are (item, value, 1 where a value was told), echoed as (100 item + 10 value + told)."""
    learner, state = echo(Spec((1,), 1, "regression"), [[100.0], [10.0], [1.0]])
    shown = Examples(inputs=torch.tensor([[[1.0], [2.0]]]), targets=torch.tensor([[[0.0], [3.0]]]))
    first, state = learner.memory.unroll(state, shown)
    assert first.flatten().tolist() == [100, 1000 + 200 + 1]
    assert learner.predict(state, torch.tensor([[[5.0]]]))[0].item() == 2000 + 500 + 31


@both_networks
@every_spec
def test_a_label_reaches_later_items_and_never_its_own(name, spec):
    learner = ALGORITHMS[name].build(spec)
    params, support = initial(learner), few_shot(spec).supports[0]
    before = said(learner, params, support)
    for item in range(5):
        targets = support.targets.clone()
        targets[:, item] = (targets[:, item] + 1) % 4
        after = said(learner, params, Examples(inputs=support.inputs, targets=targets))
        assert torch.equal(after[:, : item + 1], before[:, : item + 1])
        if item < 4:
            assert (after[:, item + 1] != before[:, item + 1]).all()


@both_networks
def test_the_gradient_of_an_answer_in_its_own_label_is_zero(name):
    learner = ALGORITHMS[name].build(REGRESSION)
    support = few_shot(REGRESSION).supports[0]
    targets = support.targets.clone().requires_grad_()
    answers = said(learner, initial(learner), Examples(inputs=support.inputs, targets=targets))
    for item in range(5):
        (gradient,) = torch.autograd.grad(answers[:, item].sum(), targets, retain_graph=True, materialize_grads=True)
        assert not gradient[:, item:].any()
        assert gradient[:, :item].all()


@both_networks
@every_spec
def test_the_last_label_reaches_the_query_items(name, spec):
    learner = ALGORITHMS[name].build(spec)
    params, given = initial(learner), few_shot(spec)
    before = outputs(learner, params, given)
    given.supports[0].targets[1, -1] = (given.supports[0].targets[1, -1] + 1) % 4
    after = outputs(learner, params, given)
    assert (after[1] != before[1]).all()
    assert torch.equal(after[[0, 2]], before[[0, 2]])


@both_networks
@every_spec
def test_an_item_is_asked_about_as_if_it_were_the_next_one_shown(name, spec):
    learner = ALGORITHMS[name].build(spec)
    params, given = initial(learner), few_shot(spec)
    state = learner.adapt(learner.begin(params, given.descriptors), given.supports[0])
    found = learner.predict(state, given.query.inputs)[0]
    for item in range(5):
        alone = each_tensor(itemgetter((slice(None), slice(item, item + 1))), given.query)
        torch.testing.assert_close(found[:, item : item + 1], learner.memory.unroll(state, alone)[0])


@both_networks
@every_spec
def test_query_items_do_not_see_each_other_and_are_forgotten(name, spec):
    learner = ALGORITHMS[name].build(spec)
    params, given = initial(learner), few_shot(spec)
    state = learner.adapt(learner.begin(params, given.descriptors), given.supports[0])
    before, after_asking = learner.predict(state, given.query.inputs)
    inputs = given.query.inputs.clone()
    inputs[:, 2] += 1
    after, _ = learner.predict(after_asking, inputs)
    others = [0, 1, 3, 4]
    torch.testing.assert_close(after[:, others], before[:, others], rtol=1e-12, atol=1e-12)
    assert (after[:, 2] != before[:, 2]).all()


@both_networks
@every_spec
def test_any_number_of_item_axes(name, spec):
    learner = ALGORITHMS[name].build(spec)
    params, given = initial(learner), few_shot(spec)
    state = learner.adapt(learner.begin(params, given.descriptors), given.supports[0])
    found = learner.predict(state, given.query.inputs[:, :4])[0]
    folded = learner.predict(state, given.query.inputs[:, :4].reshape(3, 2, 2, *spec.input_shape))[0]
    torch.testing.assert_close(folded, found.reshape(3, 2, 2, spec.output_size))


@both_networks
def test_showing_items_in_two_batches_is_showing_them_in_one(name):
    learner = ALGORITHMS[name].build(CLASSIFICATION)
    params, given = initial(learner), few_shot(CLASSIFICATION)
    support = given.supports[0]
    parts = tuple(each_tensor(itemgetter((slice(None), part)), support) for part in (slice(2), slice(2, 5)))
    found = outputs(learner, params, replace(given, supports=parts))
    torch.testing.assert_close(found, outputs(learner, params, given))


@every_algorithm
@every_spec
def test_meta_gradient_matches_finite_differences(name, spec):
    learner = ALGORITHMS[name].build(spec)
    params, given = initial(learner), few_shot(spec, tasks=2, items=4)
    values = tuple(value.requires_grad_() for value in params.values())

    def meta_loss(*values):
        return learner.meta_loss(dict(zip(params, values, strict=True)), given)[0].mean()

    assert torch.autograd.gradcheck(meta_loss, values)


@every_algorithm
@every_spec
def test_batched_equals_a_loop_over_tasks(name, spec):
    learner = ALGORITHMS[name].build(spec)
    params, given = initial(learner), few_shot(spec)
    apart = [chosen(given, slice(task, task + 1)) for task in range(3)]
    found = torch.cat([outputs(learner, params, one) for one in apart])
    torch.testing.assert_close(outputs(learner, params, given), found)
    losses = torch.stack([learner.meta_loss(params, one)[0].mean() for one in apart])
    torch.testing.assert_close(learner.meta_loss(params, given)[0].mean(), losses.mean())


@every_algorithm
@every_spec
def test_permuting_tasks_permutes_outputs(name, spec):
    learner = ALGORITHMS[name].build(spec)
    params, given, order = initial(learner), few_shot(spec), torch.tensor([2, 0, 1])
    permuted = chosen(given, order)
    torch.testing.assert_close(outputs(learner, params, permuted), outputs(learner, params, given)[order])
    torch.testing.assert_close(learner.meta_loss(params, permuted)[0], learner.meta_loss(params, given)[0][order])


@both_networks
def test_changing_the_support_of_a_task_changes_no_other(name):
    learner = ALGORITHMS[name].build(CLASSIFICATION)
    params, given = initial(learner), few_shot(CLASSIFICATION)
    before = outputs(learner, params, given)
    given.supports[0].inputs[1] *= -1
    after = outputs(learner, params, given)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert (after[1] != before[1]).all()


@pytest.mark.parametrize("network", ["mann", "rl2"])
def test_the_meta_loss_is_of_all_items_or_of_the_query_items(network):
    learner = ALGORITHMS[network].build(CLASSIFICATION)
    params, given = initial(learner), few_shot(CLASSIFICATION)
    first, answers = said(learner, params, given.supports[0]), outputs(learner, params, given)
    everything = torch.cat([first, answers], 1), torch.cat([given.supports[0].targets, given.query.targets], 1)
    loss, metrics = learner.meta_loss(params, given)
    torch.testing.assert_close(loss.mean(), functional.cross_entropy(*(values.flatten(0, 1) for values in everything)))
    on_query = functional.cross_entropy(answers.flatten(0, 1), given.query.targets.flatten())
    torch.testing.assert_close(metrics["loss/step_1"].mean(), on_query)
    query_loss, _ = ALGORITHMS[f"{network}, query"].build(CLASSIFICATION).meta_loss(params, given)
    torch.testing.assert_close(query_loss.mean(), on_query)


def test_instance_accuracies_by_hand():
    """The echo takes the label before for the answer: of 0 0 1 1 1 0, the second, fourth and fifth are right."""
    learner, state = echo(Spec((1,), 2, "classification"), [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([[0, 0, 1, 1, 1, 0]])
    shown, query = (
        Examples(inputs=torch.zeros(1, 6, 1), targets=targets),
        Examples(inputs=torch.zeros(1, 1, 1), targets=torch.tensor([[0]])),
    )
    _, metrics = learner.meta_loss(
        state.params, Experience(descriptors=torch.zeros(1, 0), supports=(shown,), query=query)
    )
    assert {name: value.item() for name, value in metrics.items() if name.startswith("accuracy/")} == {
        "accuracy/step_1": 1,
        "accuracy/instance_1": 0.5,  # no label before the first, which is then taken for 0: right by chance
        "accuracy/instance_2": 1,
        "accuracy/instance_3": 0.5,
    }


def test_labels_by_hand():
    classes = recurrent.labels(Spec((1,), 3, "classification"), torch.tensor([[2, 0]]), torch.float64)
    assert classes.tolist() == [[[0, 0, 1], [1, 0, 0]]]
    values = recurrent.labels(Spec((1,), 2, "regression"), torch.tensor([[[0.5, 0.0]]]), torch.float64)
    assert values.tolist() == [[[0.5, 0, 1]]]
    assert recurrent.label_size(Spec((1,), 3, "classification")) == 3
    assert recurrent.label_size(Spec((1,), 2, "regression")) == 3
    assert recurrent.input_size(Spec((4, 5), 2, "regression")) == 23


def test_glorot_bounds():
    weights = recurrent.glorot(generator(), 30, 20)
    assert weights.shape == (30, 20)
    assert 0.95 * math.sqrt(6 / 50) < weights.abs().max() <= math.sqrt(6 / 50)


@both_networks
def test_rollouts_are_refused_where_examples_are_learned_from(name):
    learner = ALGORITHMS[name].build(CLASSIFICATION)
    state = learner.begin(initial(learner), torch.zeros(2, 0))
    with pytest.raises(ValueError, match="expected labelled examples, but got a Rollout"):
        learner.adapt(state, synthetic.rollout(synthetic.DISCRETE, 2, generator()))


@both_networks
@pytest.mark.parametrize("outer", [TRPO(), ProMP()], ids=["trpo", "promp"])
def test_updates_of_policies_are_refused(name, outer):
    learner = ALGORITHMS[name].build(CLASSIFICATION)
    params = initial(learner)
    with pytest.raises(ValueError, match="needs rollouts; for labelled examples use adam"):
        outer.update(learner, params, outer.init(params), few_shot(CLASSIFICATION))


@pytest.mark.parametrize("kind", [MANN, RL2])
def test_an_unknown_loss_is_refused(kind):
    with pytest.raises(ValueError, match="loss_on='support': expected one of sequence, query"):
        kind(loss_on="support")
