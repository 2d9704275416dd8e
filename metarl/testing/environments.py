"""Checks of a control family's vector environments: how lanes start, end, idle and restart, alone and together."""

import dataclasses
from functools import cached_property
from typing import Any

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor

from metarl import control
from metarl.control import ControlTasks, Noted, Single, resampled
from metarl.environments import pixels_of
from metarl.testing.batches import close, equal, mask_faults, shape_faults
from metarl.testing.findings import Check, Fault, Found, NotChecked, Note
from metarl.testing.playing import Lanes, Played, random_actions, seen
from metarl.testing.subject import ROLES, Subject, drawing
from metarl.types import Rollout, Spec

BEYOND = 2
"""Steps after the horizon, in which every lane should idle."""
SURE = 20
"""Steps in which a lane alone must agree with the same lane among many. Later, rounding errors may have grown."""


class ControlSubject(Subject):
    """A control family under test. All checks share its episodes."""

    @cached_property
    def tasks(self) -> ControlTasks:
        """The tasks. Raises NotChecked for other classes than ControlTasks, which need not have an environment."""
        tasks = self.sample()
        if not isinstance(tasks, ControlTasks):
            raise NotChecked(f"{type(tasks).__name__} is not ControlTasks, so there is no vector environment to check")
        return tasks

    @cached_property
    def actions(self) -> Tensor:
        """Random actions up to the horizon and beyond, ``[step, lane, ...]``."""
        return random_actions(self.tasks, self.tasks.sampling.horizon + BEYOND)

    @cached_property
    def played(self) -> Played:
        """The responses of the lanes to these actions."""
        return Lanes(self.tasks).play(self.actions)

    @cached_property
    def random(self) -> bool:
        """Whether the same actions after a reset with another seed give another episode."""
        return not equal(self.played, Lanes(self.tasks, seed=1).play(self.actions))


def _mask(subject: ControlSubject) -> Found:
    for role in ROLES:
        tasks = subject.sample()
        drawn = subject.draw(tasks, role)
        if isinstance(drawn, Rollout):
            yield from mask_faults(drawn, drawing(tasks))


def _parameters(subject: ControlSubject) -> Found:
    if not isinstance(subject.family, Noted):
        raise NotChecked("the family does not report what its environments read (it has no notes)")
    for note in subject.family.notes:
        yield Note(note)


def _environment(subject: ControlSubject) -> Found:
    lanes, blamed = Lanes(subject.tasks), subject.tasks.environment
    try:
        control.check_environment(lanes.env, lanes.count, subject.spec)
    except ValueError as error:
        yield Fault(str(error), blamed)
        return
    pixels = pixels_of(lanes.env.single_observation_space)
    observation = lanes.reset()
    shape = (lanes.count, *(subject.spec.input_shape if pixels is None else pixels.given))
    yield from shape_faults("observations after a reset", observation, shape, observation.dtype, blamed)
    following, rewards, *flags = lanes.step(subject.actions[0])
    yield from shape_faults("observations after a step", following, shape, observation.dtype, blamed)
    yield from shape_faults("rewards", rewards, (lanes.count,), rewards.dtype, blamed)
    for name, values in zip(("terminations", "truncations"), flags, strict=True):
        yield from shape_faults(name, values, (lanes.count,), torch.bool, blamed)


def _space(subject: ControlSubject) -> Found:
    space, seen = subject.tasks.environment(1, torch.device("cpu")).single_observation_space, subject.played[0]
    if isinstance(space, spaces.Box):
        low, high = (torch.tensor(end.tolist()) for end in (space.low, space.high))
        outside = ((seen < low) | (seen > high)).reshape(*seen.shape[:2], -1).any(-1)
        if outside.any():
            step, lane = outside.nonzero()[0].tolist()
            where = f"step {step}, task {lane}: {seen[step, lane].tolist()}"
            yield Fault(f"an observation is outside {space} ({where})", subject.tasks.environment)


def _resets(subject: ControlSubject) -> Found:
    lanes, blamed = Lanes(subject.tasks), subject.tasks.environment
    if not torch.equal(lanes.reset(), lanes.reset()):
        message = "two resets with the same seed give different observations: use the seed given to reset"
        yield Fault(message, blamed)
    elif not equal(lanes.play(subject.actions), lanes.play(subject.actions)):
        message = "the same actions after two resets with the same seed give different episodes"
        yield Fault(f"{message}: use the seed given to reset", blamed)


def _horizon(subject: ControlSubject) -> Found:
    horizon = subject.tasks.sampling.horizon
    if _terminates_at_horizon(subject, horizon) and _terminates_at_horizon(subject, horizon + 1):
        message = "every lane is terminated at the horizon, whatever the horizon: a time limit must truncate instead"
        yield Fault(message, subject.tasks.environment)
    elif not subject.played.over[horizon - 1].all():
        yield Note(f"lanes are not truncated at the horizon, step {horizon}; sampling stops there anyway")


def _terminates_at_horizon(subject: ControlSubject, horizon: int) -> bool:
    """Return whether all lanes run up to a horizon and are terminated there."""
    try:
        other = resampled(subject.family, horizon=horizon)
    except ValueError:
        return False
    tasks = dataclasses.replace(subject, family=other).tasks
    played = Lanes(tasks).play(random_actions(tasks, horizon))
    return bool(played.terminated[-1].all() and not played.over[:-1].any())


def _idling(subject: ControlSubject) -> Found:
    played, blamed = subject.played, subject.tasks.environment
    ended = played.over[:-1]  # before the second step, the third, ...
    if not ended.any():
        raise NotChecked(f"no lane ended within {len(subject.actions)} steps")
    for name, flags in (("terminated", played.terminated), ("truncated", played.truncated)):
        if (flags[:-1] & ~flags[1:]).any():
            yield Fault(f"a lane that was {name} is not {name} in a later step, without a reset", blamed)
    if played.rewards[1:][ended].any():
        yield Fault("a lane that has ended still gets rewards: expected 0 until it is reset", blamed)
    if not torch.equal(played.observations[2:][ended], played.observations[1:-1][ended]):
        yield Fault("a lane that has ended still moves: expected its last observation until it is reset", blamed)


def _restarts(subject: ControlSubject) -> Found:
    lanes, actions, blamed = Lanes(subject.tasks), subject.actions, subject.tasks.environment
    middle, first, others = len(actions) // 2, slice(0, 1), slice(1, None)
    random = subject.random  # before these lanes are used: a family may keep its lanes and return the same ones again
    before = lanes.play(actions[:middle]).observations[-1]
    after = lanes.restart(torch.arange(lanes.count) == 0)
    if not torch.equal(after[others], before[others]):
        yield Fault("resetting one lane by reset_mask changes the others", blamed)
        return
    if random:
        return
    mixed = actions[middle:].clone()
    mixed[:, first] = actions[: len(mixed), first]
    found, steps = lanes.go_on(after, mixed), len(mixed)
    if not equal(found.part(0, steps, first), subject.played.part(0, steps, first)):
        message = "a lane that was reset by reset_mask does not start again: check its state and its step count"
        yield Fault(message, blamed)
    if not equal(found.part(0, steps, others), subject.played.part(middle, middle + steps, others)):
        yield Fault("after one lane was reset by reset_mask, the others continue differently", blamed)


def _alone(subject: ControlSubject) -> Found:
    for lane in range(subject.count):
        only = slice(lane, lane + 1)
        parameters = {name: values[only] for name, values in subject.tasks.parameters.items()}
        tasks = dataclasses.replace(subject.tasks, parameters=parameters, descriptors=subject.tasks.descriptors[only])
        # If each lane has its own generator, lane i has the seed + i.
        alone = Lanes(tasks, seed=lane if subject.random else 0).play(subject.actions[:, only])
        yield from _differences(subject, lane, alone, "in a lane alone", subject.tasks.environment)


def _single(subject: ControlSubject) -> Found:
    if not isinstance(subject.family, Single):
        raise NotChecked("the family has no single environment (no method single)")
    parameters = {name: values[0].numpy() for name, values in subject.tasks.parameters.items()}
    steps = int((~subject.played.over[:, 0]).sum()) + 1
    single = _played_singly(subject.spec, subject.family.single(parameters, None), subject.actions[:steps, 0])
    yield from _differences(subject, 0, single, "in the single environment", subject.family.single)


def _played_singly(spec: Spec, env: gymnasium.Env[Any, Any], actions: Tensor) -> Played:
    """Run one episode in a single environment."""
    observations, steps = [seen(spec, env.reset(seed=0)[0])], list[tuple[float, bool, bool]]()
    for action in actions:
        observation, reward, terminated, truncated, _ = env.step(action.numpy())
        observations.append(seen(spec, observation))
        steps.append((float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            break
    env.close()
    columns = (torch.tensor(values).unsqueeze(1) for values in zip(*steps, strict=True))
    return Played(torch.stack(observations).unsqueeze(1), *columns)


def _differences(subject: ControlSubject, lane: int, other: Played, where: str, blamed: Any) -> Found:
    """Yield the first difference between the episode of a lane among many and the same episode elsewhere."""
    steps = len(other.rewards)
    among = subject.played.part(0, steps, slice(lane, lane + 1))
    agree = [close(one.float(), two.float()) for one, two in zip(among[0], other[0], strict=True)]
    for values, others in zip(among[1:3], other[1:3], strict=True):
        same = [close(one.float(), two.float()) for one, two in zip(values, others, strict=True)]
        agree = [agree[0], *(one and two for one, two in zip(agree[1:], same, strict=True))]
    if all(agree):
        return
    if subject.random:
        raise NotChecked(f"episodes are random, and a task {where} gets other random numbers")
    step = agree.index(False)
    message = f"task {lane} {where} differs from its lane among {subject.count} at step {step} of {steps}"
    yield Fault(message, blamed) if step <= SURE else Note(f"{message}: growing rounding errors, or a rare event?")


CHECKS = (
    Check("mask", "1 while an episode runs, then 0; rewards are 0 after the end", _mask, ("draws",)),
    Check("parameters", "the environment reads the parameters that are set", _parameters),
    Check("environment", "it has one lane per episode, and fits the spec", _environment, ("tasks",)),
    Check("resets", "episodes depend only on the seed of the reset and on actions", _resets, ("environment",)),
    Check("space", "observations are in the observation space", _space, ("environment",)),
    Check("horizon", "episodes are truncated at the horizon, not terminated", _horizon, ("environment",)),
    Check("idling", "lanes that have ended repeat their observation, with reward 0", _idling, ("environment",)),
    Check("reset_mask", "resets the lanes of the mask and no others", _restarts, ("environment", "resets", "idling")),
    Check("lanes", "a lane behaves alone as among others", _alone, ("environment", "resets")),
    Check("single", "the single environment behaves as a lane", _single, ("environment", "resets")),
)
