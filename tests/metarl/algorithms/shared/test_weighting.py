"""Losses of several tasks put together: closed forms, slow versions, and what a network learns by them."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from support import synthetic

from metarl.algorithms.multitask import MultiTask
from metarl.algorithms.shared import weighting
from metarl.networks.options import Network
from metarl.outer.gradient import Adam
from metarl.training import Settings, TrainingError, train
from metarl.types import Examples, Experience, Spec, select
from metarl_plugins.sinusoid import Sinusoid

pytestmark = pytest.mark.usefixtures("float64")

SMALL = Network(hidden=(5,), activation="tanh")
LINEAR = Network(hidden=())
REGRESSION = Spec((3,), 2, "regression", descriptor_size=3)
CLASSIFICATION = Spec((3,), 4, "classification", descriptor_size=3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def experience(spec, tasks=3, labels=False):
    """Tasks that are told apart by the descriptor."""
    query = synthetic.examples(spec, tasks, generator())
    if labels:
        query = replace(query, targets=(query.targets > 0).double())
    return Experience(descriptors=torch.eye(3)[torch.arange(tasks) % 3], supports=(), query=query)


def gradient(losses, params):
    return torch.cat([each.flatten() for each in torch.autograd.grad(losses, list(params.values()), retain_graph=True)])


def leaves(learner):
    return {name: value.requires_grad_() for name, value in synthetic.initial(learner).items()}


def test_two_gradients_that_contradict_each_other():
    given = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(weighting.without_conflicts(given), torch.tensor([[0.5, 0.5], [0.0, 1.0]]))


def test_gradients_that_agree_stay_as_they_are():
    given = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    torch.testing.assert_close(weighting.without_conflicts(given), given)


def one_after_another(gradients):
    """Yu et al., algorithm 1, with the gradients that point most against each first."""
    for own in gradients:
        found = own.clone()
        others = [other for other in gradients if other is not own]
        for other in sorted(others, key=lambda other, own=own: (own @ other / other.norm()).item()):
            if (against := found @ other) < 0:
                found = found - against / other.square().sum() * other
        yield found


def test_surgery_equals_a_loop_over_tasks_and_their_order_does_not_matter():
    given, order = torch.randn(6, 4, generator=generator()), torch.tensor([3, 0, 5, 1, 4, 2])
    found = weighting.without_conflicts(given)
    torch.testing.assert_close(found, torch.stack(list(one_after_another(list(given)))))
    torch.testing.assert_close(weighting.without_conflicts(given[order]), found[order])
    assert not torch.allclose(found, given)


@pytest.mark.parametrize("condition", ["none", "concatenate"])
@pytest.mark.parametrize("spec", [REGRESSION, CLASSIFICATION], ids=["regression", "classification"])
def test_a_network_is_trained_by_gradients_without_conflicts(spec, condition):
    plain, operated = (
        MultiTask(network=SMALL, condition=condition, weighting=how).build(spec) for how in ("equal", "pcgrad")
    )
    params, given = leaves(plain), experience(spec, tasks=5)
    losses = plain.meta_loss(params, given)[0]
    apart = torch.stack([gradient(loss, params) for loss in losses])
    expected = torch.stack(list(one_after_another(list(apart)))).mean(0)
    found, metrics = operated.meta_loss(params, given)
    torch.testing.assert_close(found, losses)
    torch.testing.assert_close(gradient(found.mean(), params), expected)
    assert not torch.allclose(expected, apart.mean(0))
    torch.testing.assert_close(metrics, plain.meta_loss(params, given)[1])
    with torch.no_grad():
        torch.testing.assert_close(operated.meta_loss(params, given)[0], losses)


def test_fixed_weights_multiply_the_losses_of_the_tasks_that_they_are_for():
    plain, weighed = MultiTask(network=SMALL), MultiTask(network=SMALL, weighting="fixed", task_weights=(1.0, 0.5, 4.0))
    plain, weighed = plain.build(REGRESSION), weighed.build(REGRESSION)
    params, given = synthetic.initial(plain), experience(REGRESSION, tasks=4)
    losses, metrics = plain.meta_loss(params, given)
    found, same = weighed.meta_loss(params, given)
    torch.testing.assert_close(found, losses * torch.tensor([1.0, 0.5, 4.0, 1.0]))
    torch.testing.assert_close(same, metrics)


@pytest.mark.parametrize(("spec", "size"), [(REGRESSION, 1), (CLASSIFICATION, 2)], ids=["regression", "classification"])
def test_learned_variances_are_smallest_at_the_closed_form(spec, size):
    """The mean squared error; twice the cross-entropy."""
    plain = MultiTask(network=SMALL).build(spec)
    learner = MultiTask(network=SMALL, weighting="uncertainty").build(spec)
    assert learner.init(generator())["weighting:log_variances"].tolist() == [0, 0, 0]
    params, given = synthetic.initial(plain), experience(spec)
    losses, metrics = plain.meta_loss(params, given)
    best = (size * losses).log().detach().requires_grad_()
    found, same = learner.meta_loss(params | {"weighting:log_variances": best}, given)
    torch.testing.assert_close(found, 0.5 + 0.5 * best)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), best)[0], torch.zeros(3), atol=1e-12, rtol=0)
    torch.testing.assert_close(same, metrics)
    at_one, _ = learner.meta_loss(params | {"weighting:log_variances": torch.zeros(3)}, given)
    torch.testing.assert_close(at_one, losses * size / 2)


@pytest.mark.parametrize("descriptor", [(0.2, 0.7, 0.1), (0.0, 2.0, 0.0), (0.0, 0.0, 0.0), (1.0, 1.0, 0.0)])
@pytest.mark.parametrize("how", ["fixed", "uncertainty", "gradnorm"])
def test_no_weight_is_guessed_for_a_task_whose_descriptor_is_not_one_hot(how, descriptor):
    weights = (1.0, 2.0, 3.0) if how == "fixed" else ()
    learner = MultiTask(network=SMALL, weighting=how, task_weights=weights).build(REGRESSION)
    params, given = leaves(learner), experience(REGRESSION)
    given.descriptors[1] = torch.tensor(descriptor)
    losses, _ = learner.meta_loss(params, given)
    assert losses.isnan()[1]
    assert gradient(losses.sum(), params).isnan().any()


def test_a_family_of_other_descriptors_is_told_why_nothing_is_learned():
    weighed = MultiTask(network=SMALL, weighting="fixed", task_weights=(1.0, 2.0))
    with pytest.raises(TrainingError, match="descriptors that tell kinds of tasks apart are one-hot"):
        train(weighed, Sinusoid(), settings=Settings(iterations=20))


@pytest.mark.parametrize("how", ["uncertainty", "pcgrad"])
def test_the_state_of_a_task_is_its_network_alone(how):
    learner = MultiTask(network=SMALL, weighting=how).build(REGRESSION)
    given = experience(REGRESSION)
    state = learner.adapt(learner.begin(learner.init(generator()), given.descriptors), given.query)
    assert state.tuned.params.keys() == MultiTask(network=SMALL).build(REGRESSION).init(generator()).keys()


def test_variances_become_those_of_the_noise():
    """Of three tasks that share a slope, by a straight line: 0.01, 1 and 9."""
    spec, noise = Spec((1,), 1, "regression", descriptor_size=3), torch.tensor([0.1, 1.0, 3.0]).reshape(3, 1, 1)
    inputs = torch.randn(3, 400, 1, generator=generator())
    query = Examples(inputs=inputs, targets=2 * inputs + noise * torch.randn(3, 400, 1, generator=generator(1)))
    given = Experience(descriptors=torch.eye(3), supports=(), query=query)
    learner, outer = MultiTask(network=LINEAR, weighting="uncertainty").build(spec), Adam(learning_rate=0.05)
    params = learner.init(generator())
    state = outer.init(params)
    for _ in range(400):
        update = outer.update(learner, params, state, given)
        params, state = update.params, update.state
    expected = torch.linalg.vector_norm(query.targets - 2 * inputs, dim=(1, 2)).square() / 400
    torch.testing.assert_close(params["weighting:log_variances"].exp(), expected, rtol=0.05, atol=0.01)
    # The quiet task decides the slope: by equal weights, the loud one would.
    assert abs(params["head.weight"].item() - 2) < 0.02


LABELS = replace(REGRESSION, output_size=4)


def several():
    learner = MultiTask(network=SMALL, multi_label=True, step_size=0.5).build(LABELS)
    return learner, synthetic.initial(learner), experience(LABELS, labels=True)


def test_labels_have_a_sigmoid_each():
    learner, params, given = several()
    logits, _ = (one := MultiTask(network=SMALL).build(LABELS)).predict(
        one.begin(params, given.descriptors), given.query.inputs
    )
    losses, metrics = learner.meta_loss(params, given)
    found, _ = learner.predict(learner.begin(params, given.descriptors), given.query.inputs)
    torch.testing.assert_close(found, logits.sigmoid())
    likely = torch.where(given.query.targets > 0, logits.sigmoid(), 1 - logits.sigmoid())
    torch.testing.assert_close(losses, -likely.log().mean((1, 2)))
    torch.testing.assert_close(metrics["loss/step_0"], (found - given.query.targets).square().mean((1, 2)))
    torch.testing.assert_close(metrics["accuracy/step_0"], (likely > 0.5).double().mean((1, 2)))


def test_fine_tuning_to_labels_goes_down_the_slope_of_their_loss():
    learner, params, given = several()
    state = learner.adapt(learner.begin(params, given.descriptors), given.query)
    for task in range(3):
        own = {name: value.clone().requires_grad_() for name, value in params.items()}
        loss = learner.meta_loss(own, select(given, slice(task, task + 1)))[0].sum()
        for (name, value), slope in zip(own.items(), torch.autograd.grad(loss, list(own.values())), strict=True):
            torch.testing.assert_close(state.tuned.params[name][task], value - 0.5 * slope)


def test_targets_that_are_no_labels_make_a_loss_that_is_no_number():
    learner, params, given = several()
    given.query.targets[1, 0, 0] = 2.0
    assert learner.meta_loss(params, given)[0].isnan().tolist() == [False, True, False]


def test_attributes_are_learned():
    """Each of four attributes is the sign of a linear map of the inputs, for every task."""
    learner, outer = MultiTask(network=LINEAR, multi_label=True).build(LABELS), Adam(learning_rate=0.1)
    maps = torch.randn(3, 4, generator=generator(3))
    params = learner.init(generator())
    state, inputs = outer.init(params), torch.randn(3, 50, 3, generator=generator(4))
    query = Examples(inputs=inputs, targets=(inputs @ maps > 0).double())
    given = Experience(descriptors=torch.eye(3), supports=(), query=query)
    for _ in range(100):
        update = outer.update(learner, params, state, given)
        params, state = update.params, update.state
    assert update.metrics["accuracy/step_0"] > 0.95
    assert update.metrics["loss/step_0"] < 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": "equl"}, "weighting='equl': expected one of equal, fixed, uncertainty, pcgrad, gradnorm"),
        ({"weighting": "fixed"}, r"weighting='fixed' with task_weights=\(\): expected weights with fixed only"),
        ({"task_weights": (1.0,)}, r"weighting='equal' with task_weights=\(1.0,\): expected weights with fixed only"),
        *(
            ({"weighting": "fixed", "task_weights": (1.0, wrong)}, "expected positive numbers")
            for wrong in (0.0, -1.0, math.nan, math.inf)
        ),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MultiTask(**options)


@pytest.mark.parametrize(
    ("options", "spec", "message"),
    [
        (
            {"weighting": "uncertainty"},
            replace(REGRESSION, descriptor_size=0),
            r"nothing describes the tasks.*use pcgrad",
        ),
        ({"weighting": "fixed", "task_weights": (1.0,)}, REGRESSION, "1 weights for descriptors of 3 numbers"),
        ({"weighting": "pcgrad", "condition": "add"}, REGRESSION, "use condition none or concatenate"),
        ({"weighting": "gradnorm", "condition": "add"}, REGRESSION, "use condition none or concatenate"),
        *(
            ({"weighting": how}, spec, r"weighs losses of examples; .* use equal")
            for how, spec in itertools.product(
                ("uncertainty", "pcgrad", "gradnorm"), (synthetic.DISCRETE, synthetic.CONTINUOUS)
            )
        ),
        ({"multi_label": True}, CLASSIFICATION, "multi_label reads targets of 0 and 1, in a spec of regression"),
        ({"multi_label": True}, synthetic.DISCRETE, "multi_label reads targets of 0 and 1, in a spec of regression"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_tasks_is_refused(options, spec, message):
    with pytest.raises(ValueError, match=message):
        MultiTask(network=SMALL, **options).build(spec)


def test_the_gradient_of_balancing_is_gradnorms():
    """Two kinds of tasks: by hand, from G_i = w_i n_i, whose target is mean(G) (r_i / mean(r)) ** alpha."""
    logits, norms, rates = torch.zeros(2).requires_grad_(), torch.tensor([3.0, 1.0]), torch.tensor([0.5, 1.0])
    weights, losses = weighting.balanced(logits, torch.eye(2), norms, rates, force=1.0)
    assert weights.tolist() == [1, 1]
    targets = [2 * 0.5 / 0.75, 2 * 1.0 / 0.75]
    torch.testing.assert_close(losses, torch.tensor([3 - targets[0], targets[1] - 1]))
    (found,) = torch.autograd.grad(losses.sum(), logits)
    # The first weight is to fall, the second to rise; w = 2 softmax(v) has the derivatives 1/2 and -1/2 at v = 0.
    assert found.tolist() == pytest.approx([0.5 * 3 + 0.5 * 1, -0.5 * 3 - 0.5 * 1])


def test_without_a_force_weights_become_inverse_to_the_norms():
    """Then all weighted gradients are equally long, and the weights sum to their number."""
    logits, norms = torch.zeros(3).requires_grad_(), torch.tensor([4.0, 1.0, 0.5])
    optimiser = torch.optim.SGD([logits], lr=1e-3)
    for _ in range(6000):
        optimiser.zero_grad()
        weights, losses = weighting.balanced(logits, torch.eye(3), norms, torch.ones(3), force=0.0)
        losses.sum().backward()
        optimiser.step()
    expected = 3 / norms / (1 / norms).sum()
    torch.testing.assert_close(weights, expected, rtol=0.02, atol=0.0)
    assert weights.sum().item() == pytest.approx(3)


def losses_at_the_start(spec, query, labels):
    """The losses of outputs that are all zero."""
    if spec.kind == "classification":
        return torch.full((len(query.targets),), math.log(spec.output_size))
    if labels:
        return torch.full((len(query.targets),), math.log(2))
    return query.targets.square().flatten(1).mean(1)


@pytest.mark.parametrize(
    ("spec", "labels"),
    [(REGRESSION, False), (REGRESSION, True), (CLASSIFICATION, False)],
    ids=["regression", "labels", "classification"],
)
def test_gradnorm_equals_a_loop_over_tasks(spec, labels):
    plain = MultiTask(network=SMALL, multi_label=labels).build(spec)
    options = {"network": SMALL, "multi_label": labels, "restoring_force": 0.7}
    balanced, given = MultiTask(**options, weighting="gradnorm").build(spec), experience(spec, tasks=4, labels=labels)
    shared = leaves(balanced)
    logits = shared.pop("weighting:balance")
    with torch.no_grad():
        logits += torch.tensor([0.3, -0.2, 0.1])
    losses, _ = plain.meta_loss(shared, given)
    norms = torch.stack([gradient(loss, shared).norm() for loss in losses])
    rates = losses.detach() / losses_at_the_start(spec, given.query, labels)
    weights = 3 * logits.softmax(0)[[0, 1, 2, 0]]
    own = weights * norms
    learning = (own - (own.mean() * (rates / rates.mean()) ** 0.7).detach()).abs()
    found, _ = balanced.meta_loss(shared | {"weighting:balance": logits}, given)
    torch.testing.assert_close(found, weights * losses)
    torch.testing.assert_close(gradient(found.sum(), shared), gradient((weights.detach() * losses).sum(), shared))
    torch.testing.assert_close(gradient(found.sum(), {"": logits}), gradient(learning.sum(), {"": logits}))


def test_a_force_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"restoring_force=-1\.0: expected a number of at least 0"):
        MultiTask(restoring_force=-1.0)
