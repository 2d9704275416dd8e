import importlib.machinery
import importlib.util
import sys
import types
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from support.synthetic import by_hand
from torch import Generator, Tensor

from metarl import evaluation, objectives, testing
from metarl.algorithms.maml import MAML
from metarl.algorithms.mann import MANN
from metarl.algorithms.rl2 import RL2
from metarl.control.sampling import Sampling
from metarl.control.tasks import ControlTasks
from metarl.evaluation import Evaluation, adapt, evaluate, over_seeds, sample_tasks, summary
from metarl.fewshot.classification import EpisodeTasks, NWayKShot
from metarl.fewshot.regression import TableRegression, TableTasks
from metarl.networks.options import Network
from metarl.seeding import stream
from metarl.testing import small_family
from metarl.testing.batches import tensors
from metarl.types import DrawsGroups, Examples, Learner, Params, Rollout, Spec, Split
from metarl_envs.bandit import Bandit
from metarl_envs.navigation import PointNavigation

BANDIT = Bandit(arms=3, sampling=Sampling(episodes=5, horizon=2))


@dataclass(frozen=True)
class LineTasks:
    """Points on a line through the origin, of the task's slope."""

    slopes: Tensor
    drawn: list[str]

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"slope": self.slopes}

    @property
    def descriptors(self) -> Tensor:
        return self.slopes.unsqueeze(1)

    def draw(self, role: str, generator: Generator) -> Examples:
        self.drawn.append(role)
        inputs = torch.randn(len(self.slopes), 8, 1, generator=generator)
        return Examples(inputs=inputs, targets=self.slopes.reshape(-1, 1, 1) * inputs)


class Lines:
    @property
    def spec(self) -> Spec:
        return Spec((1,), 1, "regression", 1)

    def sample(self, num_tasks: int, split: Split, generator: Generator) -> LineTasks:
        return LineTasks(torch.randn(num_tasks, generator=generator), [])


def slope_learner() -> Learner:
    """Knows one slope for each task: 0 at first; each adaptation halves its distance from the least-squares slope."""

    def begin(params: Params, descriptors: Tensor) -> Tensor:
        return params["slope"].expand(len(descriptors))

    def adapt(state: Tensor, batch: Examples) -> Tensor:
        fitted = (batch.inputs * batch.targets).sum((1, 2)) / batch.inputs.square().sum((1, 2))
        return (state + fitted) / 2

    def predict(state: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return state.reshape(-1, 1, 1) * inputs, state

    def init(generator: Generator) -> Params:
        return {"slope": torch.zeros(())}

    return Learner(Lines().spec, 1, init, begin, adapt, predict, lambda *_: None)


def test_the_interval_is_students() -> None:
    # Mean 3, standard deviation sqrt(2.5), error sqrt(2.5 / 5); t with 4 degrees of freedom is 2.7764451.
    found = summary([1.0, 2.0, 3.0, 4.0, 5.0])
    width = 2.7764451052 * 0.7071067812
    assert found["mean"] == 3
    assert found["low"] == pytest.approx(3 - width, abs=1e-8)
    assert found["high"] == pytest.approx(3 + width, abs=1e-8)
    assert found["per_task"] == [1, 2, 3, 4, 5]
    # Two values: t with 1 degree of freedom is 12.7062047, the error of 1 and 3 is 1.
    assert summary([1.0, 3.0])["high"] == pytest.approx(2 + 12.7062047362, abs=1e-8)
    assert summary([4.0, 4.0, 4.0]) == {"mean": 4, "low": 4, "high": 4, "per_task": [4, 4, 4]}
    assert summary([7.0]) == {"mean": 7, "low": 7, "high": 7, "per_task": [7]}


def test_the_interval_covers_the_mean_19_times_in_20() -> None:
    samples = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0)) + 1
    covered = [found["low"] <= 1 <= found["high"] for found in map(summary, samples.tolist())]
    assert sum(covered) / 2000 == pytest.approx(0.95, abs=5 * (0.95 * 0.05 / 2000) ** 0.5)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_control_is_scored_after_every_number_of_steps(steps: int) -> None:
    learner = MAML(network=Network(hidden=(4,))).build(BANDIT.spec)
    found = evaluate(learner, learner.init(torch.Generator().manual_seed(0)), BANDIT, tasks=4, steps=steps)
    assert list(found.metrics) == [f"return/step_{step}" for step in range(steps + 1)]
    assert found.scores["return"].shape == (steps + 1, 4)
    assert len(found.queries) == steps + 1
    for step, rollout in enumerate(found.queries):
        assert isinstance(rollout, Rollout)
        returns = rollout.rewards.sum(2).mean(1)
        torch.testing.assert_close(found.scores["return"][step], returns)
        assert found.metrics[f"return/step_{step}"]["per_task"] == pytest.approx(returns.tolist())
        assert found.metrics[f"return/step_{step}"]["mean"] == pytest.approx(returns.mean().item())


def test_control_acts_with_the_adapted_policies_in_fresh_episodes() -> None:
    acted: list[int] = []

    def predict(state: int, observations: Tensor) -> tuple[Tensor, int]:
        acted.append(state)
        return torch.zeros(*observations.shape[:-1], 3), state

    learner = MAML(network=Network(hidden=(4,))).build(BANDIT.spec)
    counter = learner._replace(begin=lambda *_: 0, adapt=lambda state, batch: state + 1, predict=predict)
    found = evaluate(counter, {}, BANDIT, tasks=2, steps=2)
    assert acted == [0, 0, 1, 1, 2, 2]
    first, second, third = (rollout.actions for rollout in found.queries)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_every_algorithm_meets_the_same_tasks() -> None:
    learners = [
        MAML(network=Network(hidden=(4,))).build(BANDIT.spec),
        MAML(steps=2, network=Network(hidden=(6, 5)), first_order=True).build(BANDIT.spec),
    ]

    def tasks_of(learner: Learner, **options: Any) -> Tensor:
        params = learner.init(torch.Generator().manual_seed(1))
        found = evaluate(learner, params, BANDIT, **{"tasks": 4, "steps": 1, **options}).tasks
        assert isinstance(found, ControlTasks)
        return found.parameters["probabilities"]

    first = tasks_of(learners[0])
    assert torch.equal(first, tasks_of(learners[1], steps=2))
    assert not torch.equal(first, tasks_of(learners[0], seed=1))
    assert not torch.equal(first, tasks_of(learners[0], split="validation"))
    assert not torch.equal(first, tasks_of(learners[0], split="train"))


def test_an_evaluation_can_be_repeated_and_draws_from_no_global_generator() -> None:
    learner = MAML(network=Network(hidden=(4,))).build(BANDIT.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    kept, before = {name: value.clone() for name, value in params.items()}, torch.get_rng_state()
    first, again = (evaluate(learner, params, BANDIT, tasks=3, steps=2) for _ in range(2))
    assert first.metrics == again.metrics
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(params[name], value) for name, value in kept.items())
    other = evaluate(learner, params, BANDIT, tasks=3, steps=2, seed=5)
    assert first.metrics != other.metrics


def test_examples_are_scored_after_every_number_of_steps() -> None:
    learner = slope_learner()
    found = evaluate(learner, learner.init(torch.Generator()), Lines(), tasks=5, steps=2)
    assert list(found.metrics) == ["loss/step_0", "loss/step_1", "loss/step_2"]
    assert isinstance(found.tasks, LineTasks)
    assert found.tasks.drawn == ["support", "query"]
    (query,) = found.queries
    assert isinstance(query, Examples)
    # Each adaptation to the support set halves the error in the slope, and so quarters the loss on the query set.
    start = (found.tasks.slopes.reshape(-1, 1) * query.inputs.squeeze(-1)).square().mean(1)
    expected = torch.stack([start, start / 4, start / 16])
    torch.testing.assert_close(found.scores["loss"], expected)
    assert found.metrics["loss/step_2"]["mean"] == pytest.approx(float(start.mean()) / 16, rel=1e-5)


def test_maml_is_scored_on_examples_without_keeping_graphs() -> None:
    learner = MAML(network=Network(hidden=(8,)), step_size=0.05).build(Lines().spec)
    params = {name: value.requires_grad_() for name, value in learner.init(torch.Generator().manual_seed(0)).items()}
    found = evaluate(learner, params, Lines(), tasks=6, steps=3)
    losses = found.scores["loss"]
    assert losses.shape == (4, 6)
    assert not losses.requires_grad
    assert (losses[1:].mean(1) < losses[:-1].mean(1)).all()


def test_classification_has_an_accuracy() -> None:
    scores = objectives.scores(
        "classification",
        Examples(inputs=torch.zeros(2, 4, 1), targets=torch.zeros(2, 4, dtype=torch.int64)),
        torch.zeros(2, 4, 3),
    )
    found = Evaluation({name: value.unsqueeze(0) for name, value in scores.items()}, LineTasks(torch.ones(2), []), ())
    assert sorted(found.metrics) == ["accuracy/step_0", "loss/step_0"]


@pytest.mark.parametrize("options", [{"tasks": 0}, {"steps": -1}, {"tasks": -3, "steps": 2}])
def test_requests_without_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1 task and 0 steps"):
        evaluate(slope_learner(), {}, Lines(), **options)


def test_evaluation_fits_no_baseline_that_nobody_reads() -> None:
    family, algorithm = testing.small_family("continuous"), MAML(network=Network(hidden=(4,)))
    learner = algorithm.build(family.spec)
    judged: list[int] = []

    def estimate(state: Any, rollouts: Any) -> Any:
        judged.append(len(rollouts))
        return algorithm.advantages.of_episodes(state, rollouts)

    watched = learner._replace(estimate=estimate)
    params = learner.init(torch.Generator().manual_seed(0))
    found = evaluate(watched, params, family, tasks=3, steps=2)
    assert judged == [1, 1]  # before each step, and not after the last
    assert [query.advantages for query in found.queries] == [None] * 3
    for step, one in enumerate(adapt(learner, params, sample_tasks(family, 3), steps=2)):
        assert torch.equal(one.rollout.rewards, found.queries[step].rewards)
        assert found.scores["return"][step].tolist() == one.rollout.rewards.sum(2).mean(1).tolist()


def test_a_family_that_draws_something_else_is_refused() -> None:
    learner = slope_learner()
    rollout = by_hand(*[torch.zeros(2, 1, 1)] * 6)

    class Wrong(LineTasks):
        def draw(self, *arguments: Any) -> Any:
            return rollout

    class Family(Lines):
        def sample(self, *arguments: Any) -> LineTasks:
            return Wrong(torch.ones(2), [])

    with pytest.raises(ValueError, match="a regression family must draw Examples, not Rollout"):
        evaluate(learner, learner.init(torch.Generator()), Family(), tasks=2, steps=1)


def test_adaptation_that_diverges_is_told() -> None:
    family = small_family("regression")
    learner = MAML(step_size=1e30, network=Network(hidden=(4,))).build(family.spec)
    with pytest.warns(evaluation.DivergenceWarning, match="of 3 tasks is not finite after [1-4] steps: adaptation div"):
        found = evaluate(learner, learner.init(Generator().manual_seed(0)), family, tasks=3, steps=4)
    assert found.scores["loss"][0].isfinite().all()
    assert not found.scores["loss"][4].isfinite().all()


def test_the_table_has_a_line_for_each_metric() -> None:
    metrics = {"return/step_0": summary([1.0, 3.0]), "return/step_1": summary([2.0])}
    lines = evaluation.table(metrics).splitlines()
    assert lines[0].endswith("95 % interval over 2 tasks")
    assert lines[1].split() == ["return/step_0", "2", "[-10.71,", "14.71]"]
    assert lines[2].split() == ["return/step_1", "2", "none:", "one", "task"]
    assert len(lines) == 3
    joined = over_seeds([{"loss/step_0": summary([1.0, 3.0])}, {"loss/step_0": summary([2.0, 4.0])}])
    assert evaluation.table(joined).splitlines()[0].endswith("95 % interval over 2 seeds and 2 tasks")


@pytest.mark.parametrize("algorithm", [MAML(network=Network(hidden=(4,))), MANN(slots=8, width=3, controller=5)])
def test_examples_in_groups_of_tasks_are_scored_as_all_at_once(
    algorithm: Any, monkeypatch: pytest.MonkeyPatch, float64: None
) -> None:
    """Seven tasks of 24 numbers each: three at a time, one at a time, and all."""
    rng = torch.Generator().manual_seed(0)
    family = NWayKShot(torch.randn(60, 2, generator=rng), torch.arange(60) % 6, ways=2, shots=3)
    learner = algorithm.build(family.spec)
    params = learner.init(rng)
    found = []
    for numbers in (72, 1, 10_000):
        monkeypatch.setattr(evaluation.drawing, "NUMBERS_PER_GROUP", {"cpu": numbers})
        found.append(evaluate(learner, params, family, tasks=7, steps=2, split="train"))
    for name in ("loss", "accuracy"):
        assert found[0].scores[name].shape == (3, 7)
        torch.testing.assert_close(found[0].scores[name], found[2].scores[name])
        torch.testing.assert_close(found[1].scores[name], found[2].scores[name])
    if isinstance(algorithm, MANN):
        assert found[0].instances is not None and found[2].instances is not None
        assert torch.equal(found[0].instances, found[2].instances)
    assert found[0].queries[0].inputs.shape == (7, 6, 2)


def all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the examples of all tasks together, as of tasks that cannot be drawn in groups."""
    monkeypatch.setattr(evaluation.scores, "drawn_in_groups", evaluation.drawing.drawn_at_once)


def pictures(**options: Any) -> NWayKShot:
    pixels = torch.randint(256, (60, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return NWayKShot(pixels, torch.arange(60) % 6, **{"ways": 2, "shots": 3, "rotations": "all"} | options)


@pytest.mark.parametrize("family", [pictures(), pictures(rotations="none")])
def test_images_are_held_a_group_at_a_time(family: NWayKShot, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores are those of all that is drawn at once."""
    gathered: list[int] = []

    def gather(inputs: Tensor, items: Tensor) -> Tensor:
        gathered.append(len(items))
        return inputs[items]

    monkeypatch.setattr("metarl.fewshot.classification.gather", gather)
    monkeypatch.setattr(evaluation.drawing, "NUMBERS_PER_GROUP", {"cpu": 3 * 12 * 36})
    learner = MAML(network=Network(hidden=(4,))).build(family.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    found = evaluate(learner, params, family, tasks=7, steps=2, split="train")
    assert gathered == [3, 3, 3, 3, 1, 1]
    all_at_once(monkeypatch)
    whole = evaluate(learner, params, family, tasks=7, steps=2, split="train")
    assert all(torch.equal(found.scores[name], whole.scores[name]) for name in ("loss", "accuracy"))
    # The queries are those that were scored, whenever they are asked for.
    (asked,), (again,), (held,) = found.queries, found.queries, whole.queries
    assert len(found.queries) == 1
    assert found.queries[:1][0].targets.shape == found.queries[-1].targets.shape == (7, 6)
    for one, other, kept in zip(*map(tensors, (asked, again, held)), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(one, kept)
    with pytest.raises(IndexError):
        found.queries[1]


def table() -> TableRegression:
    rows = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    return TableRegression(rows, rows.sum(1), torch.arange(60) % 6, shots=4)


def test_rows_are_held_a_group_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    family = table()
    learner = MAML(network=Network(hidden=(4,))).build(family.spec)
    params = learner.init(torch.Generator().manual_seed(0))
    monkeypatch.setattr(evaluation.drawing, "NUMBERS_PER_GROUP", {"cpu": 50})
    found = evaluate(learner, params, family, tasks=7, split="train")
    all_at_once(monkeypatch)
    assert torch.equal(evaluate(learner, params, family, tasks=7, split="train").scores["loss"], found.scores["loss"])


def test_a_subclass_changes_what_is_scored() -> None:
    class Dark(EpisodeTasks):
        def draw_groups(self, *arguments: Any) -> Any:
            for examples in super().draw_groups(*arguments):
                yield replace(examples, inputs=torch.zeros_like(examples.inputs))

    class Family(NWayKShot):
        def sample(self, *arguments: Any) -> EpisodeTasks:
            return Dark(**vars(super().sample(*arguments)))

    family = Family(**{field.name: getattr(pictures(), field.name) for field in fields(NWayKShot)})
    learner = MAML(network=Network(hidden=(4,))).build(family.spec)
    found = evaluate(learner, learner.init(torch.Generator().manual_seed(0)), family, tasks=3, split="train")
    assert found.queries[0].inputs.max() == 0
    assert (found.scores["accuracy"][0] == 0.5).all()  # two classes of images that all look the same


@pytest.mark.parametrize("tasks", [EpisodeTasks, TableTasks])
def test_a_subclass_that_overrides_draw_alone_is_refused(tasks: type) -> None:
    """Evaluation would use the ``draw_groups`` that it inherits."""
    with pytest.raises(TypeError, match=r"Dark overrides draw, .* override draw_groups instead, which draw calls"):
        type("Dark", (tasks,), {"draw": lambda *_: None})
    type("Both", (tasks,), {"draw": lambda *_: None, "draw_groups": lambda *_: None})


def test_tasks_without_groups_are_drawn_at_once() -> None:
    assert isinstance(pictures().sample(2, "train", torch.Generator()), DrawsGroups)
    assert not isinstance(Lines().sample(2, "train", torch.Generator()), DrawsGroups)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"ways": 3}, "output_size 2, and the family has 3"),
        ({"shape": (60, 36)}, r"input_shape \(1, 6, 6\), and the family has \(36,\)"),
        ({"shape": (60, 6, 1, 6)}, r"input_shape \(1, 6, 6\), and the family has \(6, 1, 6\)"),
        ({"shape": (60, 4, 3, 3)}, r"input_shape \(1, 6, 6\), and the family has \(4, 3, 3\)"),
    ],
)
def test_families_of_another_spec_are_refused(change: dict[str, Any], told: str) -> None:
    learner = MAML(network=Network(hidden=(4,))).build(pictures().spec)
    params = learner.init(torch.Generator().manual_seed(0))
    pixels = pictures().inputs.reshape(change.pop("shape", (60, 1, 6, 6)))
    other = NWayKShot(pixels, torch.arange(60) % 6, **{"ways": 2, "scale": 255.0, **change})
    with pytest.raises(ValueError, match=f"built for tasks of another kind: {told}; evaluate what was trained on such"):
        evaluate(learner, params, other, tasks=2, split="train")
    with pytest.raises(ValueError, match="kind classification, and the family has regression"):
        evaluate(learner, params, Lines(), tasks=2)


def test_data_that_are_not_finite_are_told() -> None:
    learner = slope_learner()

    class Broken(LineTasks):
        def draw(self, role: str, generator: Generator) -> Examples:
            drawn = super().draw(role, generator)
            inputs, targets = drawn.inputs, drawn.targets
            return Examples(inputs=inputs, targets=targets.log() if role == "query" else targets)

    class Family(Lines):
        def sample(self, *arguments: Any) -> LineTasks:
            return Broken(torch.ones(2), [])

    with pytest.raises(ValueError, match="the query targets that the family drew contain numbers that are not finite"):
        evaluate(learner, learner.init(torch.Generator()), Family(), tasks=2, steps=1)


def found_for(parameters: dict[str, Tensor], scores: dict[str, Tensor]) -> Evaluation:
    tasks = LineTasks(torch.zeros(2), [])
    return Evaluation(scores, type("Told", (), {"parameters": parameters, "descriptors": tasks.descriptors})(), ())


def test_records_have_a_row_for_each_task_and_step() -> None:
    parameters = {"goal": torch.tensor([[0.5, 1.0], [1.5, 2.0]]), "arm": torch.tensor([3, 4]), "g": torch.ones(2, 1)}
    scores = {"return": torch.tensor([[1.0, 2.0], [10.0, 20.0]]), "success": torch.tensor([[0.0, 0.0], [1.0, 0.5]])}
    assert found_for(parameters, scores).records() == [
        {"task": 0, "step": 0, "goal_0": 0.5, "goal_1": 1.0, "arm": 3, "g": 1.0, "return": 1.0, "success": 0.0},
        {"task": 0, "step": 1, "goal_0": 0.5, "goal_1": 1.0, "arm": 3, "g": 1.0, "return": 10.0, "success": 1.0},
        {"task": 1, "step": 0, "goal_0": 1.5, "goal_1": 2.0, "arm": 4, "g": 1.0, "return": 2.0, "success": 0.0},
        {"task": 1, "step": 1, "goal_0": 1.5, "goal_1": 2.0, "arm": 4, "g": 1.0, "return": 20.0, "success": 0.5},
    ]


def test_parameters_of_two_axes_have_a_column_for_each_number() -> None:
    matrix = torch.arange(8).reshape(2, 2, 2)
    second = found_for({"p": matrix}, {"return": torch.zeros(1, 2)}).records()[1]
    assert second == {"task": 1, "step": 0, "p_0_0": 4, "p_0_1": 5, "p_1_0": 6, "p_1_1": 7, "return": 0.0}
    without = found_for({}, {"return": torch.zeros(1, 2)}).records()
    assert without == [{"task": 0, "step": 0, "return": 0.0}, {"task": 1, "step": 0, "return": 0.0}]


@pytest.mark.parametrize("name", ["task", "step", "return", "goal_0"])
def test_columns_of_the_same_name_are_refused(name: str) -> None:
    found = found_for({"goal": torch.zeros(2, 2), name: torch.zeros(2)}, {"return": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match=f"two columns would be called {name}"):
        found.records()


@pytest.mark.parametrize("family", [BANDIT, Lines()], ids=["control", "examples"])
def test_records_are_the_scores_of_an_evaluation(family: Any) -> None:
    learner = MAML(network=Network(hidden=(4,))).build(family.spec)
    found = evaluate(learner, learner.init(torch.Generator().manual_seed(0)), family, tasks=3, steps=2)
    for name, by_step in found.scores.items():
        told = torch.tensor([record[name] for record in found.records()]).reshape(3, 3)
        assert torch.equal(told.T, by_step)


def test_frames_are_lists_of_records_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_for({"arm": torch.tensor([3, 4])}, {"return": torch.zeros(1, 2)})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert found.to_frame() == found.records()


def test_frames_are_those_of_pandas_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_for({"arm": torch.tensor([3, 4])}, {"return": torch.zeros(1, 2)})
    pandas = types.ModuleType("pandas")
    pandas.__spec__ = importlib.machinery.ModuleSpec("pandas", None)
    pandas.DataFrame = lambda records: ("frame", records)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert found.to_frame() == ("frame", found.records())


def test_pandas_reads_the_records() -> None:
    pandas = pytest.importorskip("pandas")
    frame = found_for({"arm": torch.tensor([3, 4])}, {"return": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}).to_frame()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["task", "step", "arm", "return"]
    assert frame.groupby("step")["return"].mean().tolist() == [1.5, 3.5]


def test_environment_steps_are_those_that_the_policies_have_learnt_from() -> None:
    """MAML's policies learn from all episodes of a task; RL^2's in each lane from its own."""
    family = PointNavigation(sampling=Sampling(episodes=3, horizon=4))
    for algorithm, each in ((MAML(), 3 * 4), (RL2(hidden=4), 4)):
        learner = algorithm.build(family.spec)
        found = evaluate(learner, learner.init(stream(0, "initialisation")), family, tasks=2, steps=2)
        assert found.environment_steps is not None
        assert found.environment_steps.tolist() == [[0, 0], [each, each], [2 * each, 2 * each]]
