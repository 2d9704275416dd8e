"""The gap closed, by hand, and which evaluations may be compared."""

import json

import numpy as np
import pytest

from metarl.evaluation import comparison
from metarl.runs.folder import RunError

FAMILY = {"reference": "sinusoid", "options": {"shots": 5, "queries": None, "train_shots": 10}}
ASKED = {"tasks": 2, "split": "test", "seed": 0, "episodes": None, "family": FAMILY}


def scored(**scores):
    return {name.replace("_", "/step_"): {"per_task": values} for name, values in scores.items()}


def test_the_share_of_the_gap_by_hand():
    own = scored(return_0=[-50.0, -30.0], return_1=[-10.0, -10.0])
    pretrained = scored(return_0=[-60.0, -40.0], return_1=[-40.0, -30.0], return_2=[0.0, 0.0])
    oracle = scored(return_0=[-10.0, 0.0], return_1=[7.0, 7.0])
    found = comparison.gap_closed(own, oracle, pretrained)
    # Means: -40 and -10, pre-trained -50 and -35, the oracle -5 whatever the step.
    assert list(found) == ["return/step_0", "return/step_1"]
    assert found["return/step_0"]["mean"] == pytest.approx(10 / 45)
    assert found["return/step_1"]["mean"] == pytest.approx(25 / 30)


def test_losses_close_the_gap_by_falling():
    own, pretrained = scored(loss_0=[2.0, 4.0], accuracy_0=[0.5, 0.5]), scored(loss_0=[4.0, 6.0], accuracy_0=[0.1, 0.3])
    found = comparison.gap_closed(own, scored(loss_0=[0.0, 2.0], accuracy_0=[0.6, 1.0]), pretrained)
    assert found["loss/step_0"]["mean"] == pytest.approx(0.5)
    assert found["accuracy/step_0"]["mean"] == pytest.approx(0.5)
    assert found["loss/step_0"]["low"] == found["loss/step_0"]["high"] == pytest.approx(0.5)


def test_scores_by_instance_are_left_out():
    same = scored(accuracy_0=[0.5, 0.5])
    own = scored(accuracy_0=[0.75, 0.75]) | {"accuracy/instance_1": {"per_task": [0.2, 0.2]}}
    found = comparison.gap_closed(own, scored(accuracy_0=[1.0, 1.0]), same)
    assert list(found) == ["accuracy/step_0"]
    assert found["accuracy/step_0"]["mean"] == pytest.approx(0.5)


def test_the_interval_covers_the_share_19_times_in_20():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        difficulty = rng.normal(size=60)
        own, oracle, pretrained = (
            scored(loss_0=(level + difficulty + 0.3 * rng.normal(size=60)).tolist()) for level in (2.0, 1.0, 5.0)
        )
        found = comparison.gap_closed(own, oracle, pretrained)["loss/step_0"]
        covered += found["low"] <= 0.75 <= found["high"]
    assert 0.88 < covered / 200 < 0.99


def test_seeds_are_averaged_and_widen_the_interval():
    rng = np.random.default_rng(2)
    seeds = [[scored(return_0=(level + rng.normal(size=8)).tolist()) for _ in range(3)] for level in (2.0, 4.0, 0.0)]
    own, oracle, pretrained = (comparison.of_seeds(each) for each in seeds)
    found = comparison.gap_closed(own, oracle, pretrained)["return/step_0"]
    means = [np.mean([one["return/step_0"]["per_task"] for one in each]) for each in seeds]
    assert found["mean"] == pytest.approx((means[0] - means[2]) / (means[1] - means[2]))
    flat = [scored(return_0=np.mean([one["return/step_0"]["per_task"] for one in each], 0).tolist()) for each in seeds]
    narrow = comparison.gap_closed(*flat)["return/step_0"]
    assert narrow["mean"] == pytest.approx(found["mean"])
    assert found["high"] - found["low"] > 1.1 * (narrow["high"] - narrow["low"])


def test_equal_seeds_are_as_one():
    one = [scored(return_0=values) for values in ([1.0, 2.0, 5.0], [4.0, 6.0, 7.0], [0.0, 1.0, 0.5])]
    expected = comparison.gap_closed(*one)
    found = comparison.gap_closed(*(comparison.of_seeds([each, each]) for each in one))
    assert found["return/step_0"] == pytest.approx(expected["return/step_0"])
    assert comparison.of_seeds([scored(loss_0=[1.0, 3.0], loss_1=[0.0, 0.0]), scored(loss_0=[2.0, 2.0])]) == {
        "loss/step_0": {"mean": 2.0, "per_seed": [[1.0, 3.0], [2.0, 2.0]]}
    }


NONE = {"mean": None, "low": None, "high": None}


@pytest.mark.parametrize(("name", "worse"), [("loss_0", 3.0), ("loss_0", 2.0), ("return_0", 1.0), ("accuracy_0", 1.0)])
def test_an_oracle_that_is_not_better_gives_no_share(name, worse):
    pretrained, oracle = scored(**{name: [1.0, 3.0]}), scored(**{name: [worse, worse]})
    found = comparison.gap_closed(scored(**{name: [0.0, 0.0]}), oracle, pretrained)
    assert found == {name.replace("_", "/step_"): NONE}
    assert comparison.table(found).splitlines()[1].endswith("the oracle is not better than the pre-trained network")


def with_means(**scores):
    return {name: {"mean": np.mean(values["per_task"]), **values} for name, values in scored(**scores).items()}


def test_an_oracle_that_is_nowhere_better_is_refused():
    pretrained = with_means(return_0=[1.0, 2.0], return_1=[3.0, 4.0], return_2=[0.0, 0.0])
    comparison.check_oracle(with_means(return_0=[2.0, 2.0]), pretrained, 1)
    message = r"not better than .* \(return/step_0: 1 against 1.5; return/step_1: 1 against 3.5\), so there is no gap"
    with pytest.raises(RunError, match=message):
        comparison.check_oracle(with_means(return_0=[1.0, 1.0]), pretrained, 1)
    with pytest.raises(RunError, match=r"loss/step_0: 2 against 1\.5"):
        comparison.check_oracle(with_means(loss_0=[2.0, 2.0]), with_means(loss_0=[1.0, 2.0]), 0)


def test_one_task_has_a_share_but_no_interval():
    found = comparison.gap_closed(scored(loss_0=[2.0]), scored(loss_0=[1.0]), scored(loss_0=[5.0]))
    assert found == {"loss/step_0": {"mean": 0.75, "low": None, "high": None}}
    assert comparison.table(found).splitlines()[1].split()[1:4] == ["75.0%", "no", "interval:"]


def test_a_gap_that_may_be_none_has_no_interval():
    noisy = scored(return_0=[30.0, -29.0] * 10)
    found = comparison.gap_closed(scored(return_0=[0.25] * 20), noisy, scored(return_0=[0.0] * 20))
    assert found == {"return/step_0": {"mean": pytest.approx(0.5), "low": None, "high": None}}


def test_strata_are_no_part_of_the_uncertainty():
    """Two directions of different difficulty and no other noise: the mixture is fixed, so the share is exact."""
    easy_and_hard = [1, 0, 0, 1, 0, 1, 0]
    own, oracle, pretrained = (
        scored(return_0=[level + weight * task for task in easy_and_hard])
        for level, weight in ((3.0, 5.0), (10.0, 20.0), (0.0, 0.0))
    )
    found = comparison.gap_closed(own, oracle, pretrained, easy_and_hard)["return/step_0"]
    assert found["low"] == pytest.approx(found["mean"]) == pytest.approx(found["high"])
    plain = comparison.gap_closed(own, oracle, pretrained)["return/step_0"]
    assert plain["low"] < found["mean"] < plain["high"]
    with pytest.raises(ValueError, match="one label for each task"):
        comparison.gap_closed(own, oracle, pretrained, [0, 1])


def test_scores_at_equal_numbers_of_environment_steps():
    maml = {"environment_steps": [0.0, 2000.0, 4000.0], "metrics": scored(return_0=[1], return_1=[2], return_2=[3])}
    rl2 = {"environment_steps": [0.0, 100.0], "metrics": scored(return_0=[5], return_1=[6])}
    assert comparison.at_environment_steps(maml, "return", 1999)[:2] == (0, 0.0)
    assert comparison.at_environment_steps(maml, "return", 2000) == (1, 2000.0, {"per_task": [2]})
    assert comparison.at_environment_steps(rl2, "return", 2000) == (1, 100.0, {"per_task": [6]})
    with pytest.raises(ValueError, match="no score 'loss': expected return"):
        comparison.at_environment_steps(maml, "loss", 0)
    with pytest.raises(ValueError, match="did not count environment steps: evaluate the run again"):
        comparison.at_environment_steps({"metrics": {}}, "return", 0)
    with pytest.raises(ValueError, match="a budget of -1 environment steps"):
        comparison.at_environment_steps(maml, "return", -1)


def test_shares_are_shown_in_per_cent():
    told = comparison.table({"return/step_1": {"mean": 0.702, "low": 0.61, "high": 0.8049}})
    assert told.splitlines()[1].split() == ["return/step_1", "70.2%", "[61.0%,", "80.5%]"]


def recorded(tmp_path, **changes):
    (tmp_path / "evaluation.json").write_text(json.dumps({**ASKED, "steps": 3, "metrics": {"kept": {}}, **changes}))
    return tmp_path


def test_evaluations_of_the_same_tasks_are_compared(tmp_path):
    assert comparison.comparable(recorded(tmp_path), ASKED, 3) == {"kept": {}}
    other_training = {
        "reference": "sinusoid",
        "options": {"shots": 5, "queries": 9, "train_shots": None, "train_ways": 60},
    }
    assert comparison.comparable(recorded(tmp_path, family=other_training), ASKED, 0) == {"kept": {}}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"tasks": 3}, "was evaluated with tasks=3, not 2"),
        ({"split": "validation"}, "split=validation, not test"),
        ({"seed": 1}, "seed=1, not 0"),
        ({"episodes": 40}, "episodes=40, not None"),
        ({"family": {"reference": "harmonic", "options": {}}}, "on other tasks, with tasks=harmonic, not sinusoid"),
        ({"family": {"reference": "sinusoid", "options": {"shots": 10}}}, "on other tasks, with shots=10, not 5"),
        ({"family": {}}, "on other tasks, with tasks=None, not sinusoid"),
        ({"steps": 2}, "for 2 steps, fewer than 3"),
    ],
    ids=str,
)
def test_other_evaluations_are_refused(tmp_path, changes, told):
    with pytest.raises(RunError, match=f"{told}; evaluate it again: metarl evaluate {tmp_path} with the same options"):
        comparison.comparable(recorded(tmp_path, **changes), ASKED, 3)


def test_a_run_that_was_not_evaluated_is_refused(tmp_path):
    with pytest.raises(RunError, match="has not been evaluated; evaluate it again"):
        comparison.comparable(tmp_path, ASKED, 0)
