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


def test_without_a_gap_there_is_no_share():
    same = scored(loss_0=[1.0, 3.0])
    found = comparison.gap_closed(scored(loss_0=[0.0, 0.0]), same, same)
    assert found == {"loss/step_0": {"mean": None, "low": None, "high": None}}
    assert comparison.table(found).splitlines()[1].endswith("the oracle and the pre-trained network score the same")


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
