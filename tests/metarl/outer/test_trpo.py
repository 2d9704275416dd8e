"""Outer updates: curvature against finite differences, chunks against the whole, what TRPO and ProMP promise."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import loop_reference, synthetic
from support.synthetic import CONTINUOUS, DISCRETE, by_hand

from metarl.algorithms.maml import MAML
from metarl.networks.options import Network
from metarl.numerics import flatten, unflatten
from metarl.outer import adapted, trpo
from metarl.outer.choice import default_outer
from metarl.outer.gradient import SGD, Adam
from metarl.outer.promp import ProMP
from metarl.outer.trpo import TRPO
from metarl.types import Experience, Params, Spec, holding

pytestmark = pytest.mark.usefixtures("float64")

SPECS = pytest.mark.parametrize("spec", [CONTINUOUS, DISCRETE], ids=["continuous", "discrete"])
SURROGATES = pytest.mark.parametrize("surrogate", ["log_likelihood", "likelihood_ratio", "dice"])
UPDATES = pytest.mark.parametrize(
    "update", [TRPO(), ProMP(), Adam(), SGD(learning_rate=0.01)], ids=["trpo", "promp", "adam", "sgd"]
)


def prepared(spec, steps=1, tasks=4, **options):
    learner = MAML(
        steps=steps, network=Network(hidden=(5,), activation="tanh"), step_size=0.2, schedule=(1.0,), **options
    ).build(spec)
    params = learner.init(torch.Generator().manual_seed(0))
    return learner, params, synthetic.experience(learner, params, tasks)


@SPECS
@SURROGATES
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_hessian_product_matches_finite_differences_of_the_kl_gradient(spec, surrogate, steps):
    learner, params, experience = prepared(spec, steps, surrogate=surrogate)
    old = adapted.adapted_outputs(learner, params, experience).detach()

    def kl_gradient(vector):
        leaves = {name: value.requires_grad_() for name, value in unflatten(vector.detach(), params).items()}
        new = adapted.adapted_outputs(learner, leaves, experience)
        kl = adapted.mean_kl(learner, old, new, experience.query).mean()
        return flatten(torch.autograd.grad(kl, list(leaves.values())))

    origin = flatten(params.values())
    direction = torch.randn(origin.shape, generator=torch.Generator().manual_seed(3))
    expected = (kl_gradient(origin + 1e-5 * direction) - kl_gradient(origin - 1e-5 * direction)) / 2e-5
    lines = [adapted.linearise(learner, params, part) for part in adapted.split(experience, 2)]
    found = adapted.kl_hessian_product(learner, lines, direction)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


@SURROGATES
@pytest.mark.parametrize("steps", [1, 2])
def test_trpo_equals_the_plain_loop_with_exact_hessians(surrogate, steps):
    learner, params, experience = prepared(CONTINUOUS, steps, surrogate=surrogate)
    expected, _ = loop_reference.trpo_update(params, experience.supports, experience.query, 0.2, surrogate)
    found = TRPO().update(learner, params, {}, experience).params
    for name, value in expected.items():
        assert not torch.equal(value, params[name])
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)


@SPECS
@UPDATES
@pytest.mark.parametrize("options", [{"chunks": 2}, {"chunks": 3}, {"chunks": 4}, {"keep_graphs": False, "chunks": 4}])
def test_chunks_equal_the_whole(spec, update, options):
    if "keep_graphs" in options and not isinstance(update, TRPO):
        pytest.skip("only TRPO keeps graphs")
    learner, params, experience = prepared(spec, steps=2)
    whole = type(update)(chunks=1).update(learner, params, update.init(params), experience)
    parts = type(update)(**options).update(learner, params, update.init(params), experience)
    torch.testing.assert_close(parts.params, whole.params, rtol=1e-7, atol=1e-10)
    assert parts.metrics.keys() == whole.metrics.keys()
    for name, value in parts.metrics.items():
        assert float(value) == pytest.approx(float(whole.metrics[name]), rel=1e-6, abs=1e-9)


@SPECS
@SURROGATES
@UPDATES
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_every_update_serves_every_surrogate_and_number_of_steps(spec, surrogate, update, steps):
    learner, params, experience = prepared(spec, steps, surrogate=surrogate)
    old = adapted.adapted_outputs(learner, params, experience)
    start, _ = adapted.surrogate_and_kl(learner, params, [experience], [old])
    found = update.update(learner, params, update.init(params), experience)
    end, kl = adapted.surrogate_and_kl(learner, found.params, [experience], [old])
    assert found.finite
    assert end < start
    if isinstance(update, TRPO | ProMP):
        assert found.metrics["outer/surrogate"] == pytest.approx(start - end)
        assert found.metrics["outer/kl"] == pytest.approx(kl)


@SPECS
@pytest.mark.parametrize("max_kl", [0.001, 0.01, 0.1])
def test_trpo_steps_satisfy_the_bound_and_use_it(spec, max_kl):
    learner, params, experience = prepared(spec)
    found = TRPO(max_kl=max_kl).update(learner, params, {}, experience)
    assert found.metrics["outer/accepted"] == 1
    assert max_kl / 10 < found.metrics["outer/kl"] <= max_kl
    assert found.metrics["outer/surrogate"] > 0


def test_trpo_keeps_its_parameters_when_no_step_is_acceptable(monkeypatch):
    learner, params, experience = prepared(CONTINUOUS)
    monkeypatch.setattr(adapted, "surrogate_and_kl", lambda *arguments: torch.tensor([-1.0, 1.0]))
    found = TRPO().update(learner, params, {}, experience)
    assert found.finite
    assert all(torch.equal(value, params[name]) for name, value in found.params.items())
    assert found.metrics["outer/accepted"] == 0
    assert found.metrics["outer/line_search_steps"] == 15


@UPDATES
def test_a_batch_without_any_advantage_moves_nothing_far(update):
    learner, params, experience = prepared(CONTINUOUS)
    zero = [replace(batch, advantages=torch.zeros_like(batch.advantages)) for batch in experience.supports]
    query = replace(experience.query, advantages=torch.zeros_like(experience.query.advantages))
    found = update.update(learner, params, update.init(params), replace(experience, supports=tuple(zero), query=query))
    assert found.finite
    assert all(torch.isfinite(value).all() for value in found.params.values())


@UPDATES
def test_a_gradient_that_is_not_finite_is_refused(update):
    learner, params, experience = prepared(CONTINUOUS)
    broken = experience.query.advantages.clone()
    broken[0, 0, 0] = float("nan")
    state = update.init(params)
    found = update.update(
        learner, params, state, replace(experience, query=replace(experience.query, advantages=broken))
    )
    assert not found.finite
    assert found.params is params
    assert found.state is state


def test_promp_adapts_its_penalty():
    learner, params, experience = prepared(CONTINUOUS, steps=2)
    calm, wild = (ProMP(learning_rate=rate, inner_kl_adaptive=True) for rate in (1e-6, 0.1))
    state = calm.update(learner, params, calm.init(params), experience).state
    assert state["coefficients"].tolist() == [2.5e-4, 2.5e-4]
    assert calm.update(learner, params, state, experience).state["coefficients"].tolist() == [1.25e-4, 1.25e-4]
    assert wild.update(learner, params, wild.init(params), experience).state["coefficients"].tolist() == [1e-3, 1e-3]


def test_promps_penalty_is_constant_unless_it_is_asked_to_adapt():
    learner, params, experience = prepared(CONTINUOUS, steps=2)
    for rate in (1e-6, 0.1):
        update = ProMP(learning_rate=rate)
        found = update.update(learner, params, update.init(params), experience)
        torch.testing.assert_close(found.state["coefficients"], torch.full((2,), 5e-4))


@pytest.mark.parametrize(("over", "share"), [("mean", 0.5), ("sum", 1.0)])
def test_promps_gradient_holds_the_mean_or_the_sum_of_the_inner_kls(over, share, float64):
    """The penalty is linear in its weight: where the sum of two has a weight of c, their mean has one of 2 c."""
    learner, params, experience = prepared(CONTINUOUS, steps=2)

    def gradient(coefficient):
        update = ProMP(inner_kl_coefficient=coefficient, epochs=2, learning_rate=1e-3, inner_kl_over_steps=over)
        return update.update(learner, params, update.init(params), experience).state["first"]

    reference = ProMP(inner_kl_coefficient=30.0 * share, epochs=2, inner_kl_over_steps="sum")
    expected = reference.update(learner, params, reference.init(params), experience).state["first"]
    torch.testing.assert_close(gradient(30.0), expected, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(gradient(30.0), gradient(60.0), rtol=1e-3)


def test_promp_refuses_other_ways_to_put_penalties_together():
    with pytest.raises(ValueError, match="inner_kl_over_steps='max': expected one of mean, sum"):
        ProMP(inner_kl_over_steps="max")


def test_without_its_penalty_promp_is_ppo_through_adaptation(float64):
    """Adam's first step is that of the clipped surrogate alone, whose gradient is PPO's."""
    learner, params, experience = prepared(CONTINUOUS)
    update = ProMP(inner_kl_coefficient=0.0, epochs=1)
    found = update.update(learner, params, update.init(params), experience).state["first"]
    assert found.any()
    tiny = ProMP(inner_kl_coefficient=1e-12, epochs=1)
    torch.testing.assert_close(found, tiny.update(learner, params, tiny.init(params), experience).state["first"])
    several = replace(update, epochs=20, learning_rate=0.01)
    held = replace(several, inner_kl_coefficient=100.0)
    free, back = (one.update(learner, params, one.init(params), experience).metrics for one in (several, held))
    assert back["outer/inner_kl"] < 0.3 * free["outer/inner_kl"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"inner_kl_coefficient": -1.0}, "expected at least 0, and finite"),
        ({"inner_kl_coefficient": float("nan")}, "expected at least 0, and finite"),
        ({"inner_kl_coefficient": 0.0, "inner_kl_adaptive": True}, "0 stays 0"),
    ],
    ids=str,
)
def test_weights_of_promps_penalty_that_make_no_sense_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        ProMP(**options)


def test_promp_penalty_holds_the_inner_policies_back():
    learner, params, experience = prepared(CONTINUOUS)

    def inner_kl(coefficient):
        update = ProMP(inner_kl_coefficient=coefficient, learning_rate=0.01, epochs=20)
        return update.update(learner, params, update.init(params), experience).metrics["outer/inner_kl"]

    assert inner_kl(100.0) < 0.3 * inner_kl(1e-9)


@pytest.mark.parametrize(
    ("anneal", "progress", "step_size"), [(False, 0.25, 0.5), (True, 0.0, 0.5), (True, 0.25, 0.375), (True, 1.0, 0.0)]
)
def test_gradient_descent_takes_steps_that_shrink_with_progress(anneal, progress, step_size):
    learner, params, experience = prepared(Spec((3,), 1, "regression"))
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    losses, metrics = learner.meta_loss(leaves, experience)
    gradients = torch.autograd.grad(losses.mean(), list(leaves.values()))
    update = SGD(learning_rate=0.5, anneal=anneal)
    found = update.update(learner, params, update.init(params), replace(experience, progress=progress))
    for (name, value), gradient in zip(params.items(), gradients, strict=True):
        torch.testing.assert_close(found.params[name], value - step_size * gradient)
    assert found.state == {}
    assert found.metrics["outer/step_size"] == step_size
    assert float(found.metrics["outer/gradient_norm"]) == pytest.approx(float(flatten(gradients).norm()))
    assert float(found.metrics["outer/loss"]) == pytest.approx(losses.mean().item())
    assert float(found.metrics["loss/step_1"]) == pytest.approx(float(metrics["loss/step_1"].mean()))


def test_an_algorithm_may_state_its_own_default():
    class Stated(MAML):
        def default_outer(self):
            return SGD(learning_rate=0.25)

    assert default_outer(Stated(), CONTINUOUS) == SGD(learning_rate=0.25)
    assert default_outer(MAML(), CONTINUOUS) == TRPO()
    assert default_outer(MAML(), Spec((3,), 1, "regression")) == Adam()


@pytest.mark.parametrize("update", [TRPO(), ProMP()], ids=["trpo", "promp"])
def test_policy_updates_refuse_labelled_examples(update):
    learner, params, experience = prepared(Spec((3,), 1, "regression"))
    with pytest.raises(ValueError, match="labelled examples use adam"):
        update.update(learner, params, update.init(params), experience)


def test_more_chunks_than_tasks_are_refused():
    learner, params, experience = prepared(CONTINUOUS)
    with pytest.raises(ValueError, match="chunks=5 is more than the 4 tasks"):
        TRPO(chunks=5).update(learner, params, {}, experience)


@pytest.mark.parametrize(
    ("update", "options"),
    [
        (TRPO, {"max_kl": 0.0}),
        (TRPO, {"backtrack": 1.0}),
        (TRPO, {"damping": -1.0}),
        (TRPO, {"chunks": 0}),
        (ProMP, {"clip": -0.1}),
        (ProMP, {"epochs": 0}),
        (Adam, {"learning_rate": float("nan")}),
        (Adam, {"chunks": -1}),
        (SGD, {"learning_rate": 0.0}),
        (SGD, {"chunks": 0}),
    ],
)
def test_options_out_of_range_are_refused(update, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        update(**options)


@pytest.mark.parametrize(
    ("steps", "threads", "groups"),
    [(2000, 2, 1), (12_000, 2, 1), (40_000, 1, 5), (40_000, 2, 4), (40_000, 4, 4), (160_000, 2, 20), (160_000, 16, 16)],
)
def test_groups_keep_every_core_at_work(steps, threads, groups, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    zeros = torch.zeros(20, steps // 20, 1)
    rollout = by_hand(zeros, zeros, zeros, zeros, zeros, zeros)
    assert len(adapted.split(Experience(descriptors=torch.zeros(20, 1), supports=(), query=rollout), None)) == groups


def test_a_captured_step_reads_the_buffers_of_its_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph on a GPU is what was captured, so all that changes must be among its arguments."""
    learner = MAML(network=Network(hidden=(4,)), normalise_observations=True).build(CONTINUOUS)
    assert learner.buffers is not None
    params, buffers = learner.init(torch.Generator().manual_seed(0)), learner.buffers.init()
    graphs: dict[str, Any] = {}

    def first(name: str, function: Any, *arguments: Any) -> Any:
        return graphs.setdefault(name, function)(*arguments)

    steps = list[Params]()
    for _ in range(2):
        held = holding(learner, buffers)
        experience = synthetic.experience(held, params)
        expected = TRPO().update(held, params, {}, experience)
        with monkeypatch.context() as patched:
            patched.setattr(trpo, "run_captured", first)
            found = TRPO().update(held, params, {}, experience)
        for name, value in expected.params.items():
            assert torch.equal(found.params[name], value)
        buffers = learner.buffers.move(buffers, experience)
        steps.append(found.params)
    assert not torch.equal(steps[0]["head.weight"], steps[1]["head.weight"])
