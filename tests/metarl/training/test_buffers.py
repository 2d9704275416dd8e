"""Buffers beside the meta-parameters: who moves them, when, and what keeps them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarl import open_run, resume, runs, train
from metarl.algorithms import MAML
from metarl.networks import Network
from metarl.outer import SGD, Adam, meta_gradient
from metarl.testing import ContractError, check_algorithm, small_family
from metarl.training import Iteration, Settings, TrainingError, gather
from metarl.types import Buffers, Experience, Learner, Params, Spec, held_by, holding, rollout_of

SETTINGS = Settings(iterations=4, meta_batch_size=3, device="cpu", checkpoint_every=1)
FAMILY = small_family("discrete")
KEPT = 2
"""Meta-batches that are replayed."""


@dataclass(frozen=True)
class Replaying:
    """MAML that also keeps the returns of the last iterations, and lets the rate of its loss follow a count."""

    spoil: str = ""
    """What goes wrong."""

    def build(self, spec: Spec) -> Learner:
        learner = MAML(network=Network(hidden=(4,))).build(spec)

        def init() -> Params:
            name = "head.weight" if self.spoil == "name" else "replay.returns"
            return {name: torch.zeros(KEPT, 3), "replay.count": torch.zeros((), dtype=torch.int64)}

        def move(buffers: Params, experience: Experience) -> Params:
            returns = rollout_of(experience.query).rewards.sum((1, 2))
            kept = torch.cat([buffers["replay.returns"][1:], returns.unsqueeze(0)])
            kept = kept[1:] if self.spoil == "shape" else kept + float(self.spoil or 0)
            return {"replay.returns": kept, "replay.count": buffers["replay.count"] + 1}

        def begin(params: Params, descriptors: Tensor) -> Any:
            assert params.keys() == (learner.init(torch.Generator()) | init()).keys(), "all buffers, and no others"
            return learner.begin({name: params[name] for name in params if not name.startswith("replay")}, descriptors)

        def meta_loss(params: Params, experience: Experience) -> Any:
            own = {name: value for name, value in params.items() if not name.startswith("replay")}
            losses, metrics = learner.meta_loss(own, experience)
            return losses * (1 + params["replay.count"]) + params["replay.returns"].mean(), metrics

        return learner._replace(begin=begin, meta_loss=meta_loss, buffers=Buffers(init, move))


@dataclass
class Watch:
    """Notes the buffers after each iteration, and those that the outer update's learner held in it."""

    after: list[Params]

    def __call__(self, iteration: Iteration) -> None:
        assert held_by(iteration.learner) is iteration.progress.buffers
        self.after.append(iteration.progress.buffers)


@dataclass(frozen=True)
class Told(SGD):
    """Gradient descent that notes the learner's buffers, and the queries' returns."""

    told: Callable[[Params, Experience], None] = lambda held, experience: None
    refuse: int = 99

    def update(self, learner: Learner, params: Params, state: dict[str, Any], experience: Experience) -> Any:
        held = held_by(learner)
        self.told(held, experience)
        update = super().update(learner, params, state, experience)
        assert update.params.keys() == params.keys() and not params.keys() & held.keys()
        return update._replace(finite=int(held["replay.count"]) < self.refuse)


def test_they_move_once_after_each_iteration_by_their_own_rule() -> None:
    seen, watch = list[tuple[Params, Tensor]](), Watch([])

    def told(held: Params, experience: Experience) -> None:
        seen.append((held, rollout_of(experience.query).rewards.sum((1, 2))))

    result = train(Replaying(), FAMILY, Told(0.1, told=told), SETTINGS, callbacks=[watch])
    assert [int(held["replay.count"]) for held, _ in seen] == [0, 1, 2, 3], "those before the iteration"
    assert [int(buffers["replay.count"]) for buffers in watch.after] == [1, 2, 3, 4]
    assert result.buffers["replay.count"] == 4 and result.buffers["replay.count"].dtype == torch.int64
    torch.testing.assert_close(result.buffers["replay.returns"], torch.stack([returns for _, returns in seen[-KEPT:]]))


def test_the_meta_gradient_is_that_at_the_buffers_held() -> None:
    learner = Replaying().build(FAMILY.spec)
    params, buffers = learner.init(torch.Generator().manual_seed(0)), learner.buffers.init()  # type: ignore[union-attr]
    tasks = FAMILY.sample(2, "train", torch.Generator().manual_seed(0))
    held = holding(learner)
    draws = (torch.Generator().manual_seed(number) for number in range(9))
    experience, _ = gather(held, params, tasks, draws)
    once, _ = meta_gradient(held, params, experience)
    thrice, _ = meta_gradient(holding(held, buffers | {"replay.count": torch.tensor(2)}), params, experience)
    torch.testing.assert_close(thrice, 3 * once)
    assert once.any()


def test_a_refused_step_leaves_them_too() -> None:
    with pytest.raises(TrainingError, match="not finite in 5 iterations in a row"):
        train(Replaying(), FAMILY, Told(0.1, refuse=2), replace(SETTINGS, iterations=20))
    watch = Watch([])
    train(Replaying(), FAMILY, Told(0.1, refuse=2), SETTINGS, callbacks=[watch])
    assert [int(buffers["replay.count"]) for buffers in watch.after] == [1, 2, 2, 2]


def test_they_are_in_checkpoints_and_go_on_bit_for_bit(tmp_path: Path) -> None:
    whole = train(Replaying(), FAMILY, Adam(), SETTINGS)
    train(Replaying(), FAMILY, Adam(), replace(SETTINGS, iterations=2), tmp_path / "run")
    saved = runs.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert saved["format"] == 2 and int(saved["buffers"]["replay.count"]) == 2
    resumed, opened = resume(tmp_path / "run", iterations=4), open_run(tmp_path / "run")
    for other in (resumed, opened):
        for name, value in (whole.params | whole.buffers).items():
            assert torch.equal(value, (other.params | other.buffers)[name])


def test_training_may_start_from_those_of_another_run() -> None:
    first = train(Replaying(), FAMILY, Adam(), SETTINGS)
    then = train(Replaying(), FAMILY, Adam(), SETTINGS, start_from=first.params | first.buffers)
    assert int(then.buffers["replay.count"]) == 8


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        ("shape", r"the learner's buffer replay.returns was moved from \(\(2, 3\).* to \(\(1, 3\).* keep their names"),
        ("name", "a buffer and a meta-parameter of one name, head.weight: rename the buffer"),
    ],
)
def test_wrong_ones_are_refused(spoil: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        train(Replaying(spoil), FAMILY, Adam(), SETTINGS)
    with pytest.raises(ContractError, match="buffer"):
        check_algorithm(Replaying(spoil), FAMILY, tasks=3)


def test_those_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"replay\.returns is not finite after iteration 1"):
        train(Replaying("inf"), FAMILY, Adam(), SETTINGS, tmp_path / "run")


def test_another_learners_are_refused(tmp_path: Path) -> None:
    learner = Replaying().build(FAMILY.spec)
    with pytest.raises(ValueError, match=r"the learner has the buffers replay\.returns, replay\.count, not other"):
        holding(holding(learner), {"other": torch.ones(1)})
    plain = MAML().build(FAMILY.spec)
    assert holding(plain, {}) is plain and held_by(plain) == {} == held_by(learner)
    with pytest.raises(ValueError, match=r"there are buffers \(other\) for a learner that has none"):
        holding(plain, {"other": torch.ones(1)})


def test_a_checkpoint_without_them_is_refused_where_the_learner_has_some(tmp_path: Path) -> None:
    train(Replaying(), FAMILY, Adam(), replace(SETTINGS, iterations=2), tmp_path / "run")
    path = tmp_path / "run" / "checkpoint.pt"
    runs.save_checkpoint(path, runs.load_checkpoint(path) | {"buffers": {}})
    for ask in (lambda: open_run(tmp_path / "run"), lambda: resume(tmp_path / "run", iterations=4)):
        with pytest.raises(runs.RunError, match=r"another architecture: replay\.returns is absent there"):
            ask()


def test_compiled_iterations_have_no_place_for_them() -> None:
    lines = small_family("regression")

    @dataclass(frozen=True)
    class Counting:
        def build(self, spec: Spec) -> Learner:
            rule = Buffers(lambda: {"count": torch.zeros(())}, lambda held, seen: {"count": held["count"] + 1})
            inner = MAML(network=Network(hidden=(4,))).build(spec)

            def meta_loss(params: Params, experience: Experience) -> Any:
                return inner.meta_loss({name: params[name] for name in params if name != "count"}, experience)

            return inner._replace(meta_loss=meta_loss, buffers=rule)

    with pytest.raises(ValueError, match="compile: a learner of labelled examples that has buffers is not compiled"):
        train(Counting(), lines, Adam(), replace(SETTINGS, compile=True))
    result = train(Counting(), lines, Adam(), SETTINGS)
    assert float(result.buffers["count"]) == 4 and isinstance(result.rows[0]["loss/step_1"], float)
