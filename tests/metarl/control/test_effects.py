"""Whether task parameters reach what an environment reads."""

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from metarl.control.effects import without_effect
from metarl.control.gymnasium_family import GymnasiumFamily
from metarl.control.source import attributes_of
from metarl.environments import make_env
from metarl.testing import family_outcomes

ADVICE = "let apply be a function that sets what the steps read"


def family(env: Any, apply: Any, *names: str) -> GymnasiumFamily:
    return GymnasiumFamily(env, spaces.Dict({name: spaces.Box(0.5, 2.0) for name in names}), apply)


@pytest.mark.parametrize(
    ("env", "name", "notes"),
    [
        ("CartPole-v1", "masscart", "nothing reads masscart after it is set: the constructor made total_mass from it"),
        ("CartPole-v1", "masspole", "setting masspole leaves polemass_length, total_mass as the constructor made it"),
        ("CartPole-v1", "length", "setting length leaves polemass_length as the constructor made it from length"),
        ("CartPole-v1", "gravity", None),
        ("CartPole-v1", "tau", None),
        ("Pendulum-v1", "g", None),
        ("Pendulum-v1", "m", None),
        ("MountainCar-v0", "force", None),
        ("MountainCarContinuous-v0", "power", None),
        ("Acrobot-v1", "LINK_MASS_1", None),
    ],
)
def test_attributes_that_a_constructor_uses_up(env: str, name: str, notes: str | None) -> None:
    chosen = family(env, "attribute", name)
    if notes is None:
        assert chosen.spec.descriptor_size == 1
        assert chosen.notes == ()
        return
    with pytest.warns(UserWarning, match=f"{env}: {re.escape(notes)}.*{ADVICE}"):
        chosen.spec  # noqa: B018
    assert len(chosen.notes) == 1


def test_a_function_that_sets_all_of_it_is_right() -> None:
    def whole(env: Any, masspole: float) -> None:
        cart = env.unwrapped
        cart.masspole, cart.total_mass, cart.polemass_length = (
            masspole,
            masspole + cart.masscart,
            masspole * cart.length,
        )

    def part(env: Any, masspole: float) -> None:
        env.unwrapped.masspole = masspole

    assert family("CartPole-v1", whole, "masspole").notes == ()
    assert "leaves polemass_length, total_mass" in family("CartPole-v1", part, "masspole").notes[0]


class Sprung(gymnasium.Env[Any, Any]):
    """A constructor that makes others of its stiffness; only ``wound`` is made again by each reset."""

    observation_space, action_space = spaces.Box(-9, 9, (1,)), spaces.Box(-1, 1, (1,))

    def __init__(self, stiffness: float = 1.0, unused: float = 1.0) -> None:
        self.stiffness, self.unused, self.wound = stiffness, unused, 2 * stiffness
        half = stiffness / 2
        self.quarter = half / 2
        self.shown = 3 * stiffness

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.wound = 2 * self.stiffness
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), self.wound + self.quarter, False, False, {}

    def describe(self) -> float:
        return self.shown

    def render(self) -> Any:
        return self.unused


def test_what_each_reset_makes_anew_is_not_told() -> None:
    assert family(Sprung, "attribute", "stiffness").notes == (
        f"setting stiffness leaves quarter as the constructor made it from stiffness; {ADVICE}",
    )
    assert family(Sprung, "attribute", "unused").notes == (f"nothing reads unused after it is set; {ADVICE}",)
    assert family(Sprung, "keyword", "stiffness", "unused").notes == ()
    known = attributes_of(Sprung)
    assert known is not None and known.made_from["stiffness"] == {"wound", "quarter", "shown", "half"}


def test_options_that_reset_does_not_read() -> None:
    assert family("CartPole-v1", "options", "gravity").notes == ("reset does not read the option gravity",)

    class Reads(Sprung):
        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            self.stiffness = {"stiffness": 1.0, **(options or {})}["stiffness"]
            return super().reset(seed=seed)

    assert family(Reads, "options", "stiffness").notes == ()


def body_mass(env: Any) -> Any:
    return env.unwrapped.model.body_mass


@pytest.mark.parametrize(
    ("env", "scale", "told"),
    [
        ("CartPole-v1", lambda env: vars(env).update(tau=env.tau * 2), "tau from 0.08 to 0.32"),
        ("HalfCheetah-v5", lambda env: env.model.body_mass.__imul__(2), r"model.body_mass from \d+\.\d+ to \d+"),
    ],
)
def test_functions_that_scale_are_named(env: str, scale: Any, told: str) -> None:
    def heavier(env: Any, m: float) -> None:
        scale(env.unwrapped)

    message = rf"the function .*heavier \(.*test_effects.py:\d+\) changes {told}.*: it must set values, not scale them"
    with pytest.raises(ValueError, match=message):
        family(env, heavier, "m").spec  # noqa: B018


@pytest.mark.parametrize("ends", [(0.5, 2.0), (1.0, 3.0), (0.0, 1.0)])
@pytest.mark.parametrize("change", [lambda gravity, m: gravity * m, lambda gravity, m: gravity + m])
def test_scaling_is_found_whatever_the_range(ends: tuple[float, float], change: Any) -> None:
    def scaled(env: Any, m: float) -> None:
        env.unwrapped.gravity = change(env.unwrapped.gravity, m)

    env = make_env("CartPole-v1", scaled, {})
    with pytest.raises(ValueError, match=r"the function .*scaled .* changes gravity from"):
        without_effect(env, scaled, {"m": ends[0]}, {"m": ends[1]})


def test_functions_that_scale_what_they_kept_are_right() -> None:
    nominal = make_env("HalfCheetah-v5", "attribute", {}).unwrapped.model.body_mass.copy()  # type: ignore[attr-defined]

    def heavier(env: Any, m: float) -> None:
        body_mass(env)[:] = nominal * m

    assert family("HalfCheetah-v5", heavier, "m").notes == ()


def test_functions_that_change_nothing() -> None:
    def nothing(env: Any, m: float) -> None:
        pass

    told = family("CartPole-v1", nothing, "m").notes
    assert re.match(r"the function .*nothing \(.*\) changes nothing in the environment$", told[0])


def test_check_tells_of_both() -> None:
    def scaled(env: Any, m: float) -> None:
        env.unwrapped.gravity *= m

    outcomes = family_outcomes(family("CartPole-v1", scaled, "m"), device="cpu")
    assert outcomes[0].verdict == "FAILED"
    told = outcomes[0].messages[0]
    assert "test_check_tells_of_both.scaled" in told and told.count(".py:") == 1
    with pytest.warns(UserWarning, match="masscart"):
        outcomes = family_outcomes(family("CartPole-v1", "attribute", "masscart"), device="cpu")
    found = next(outcome for outcome in outcomes if outcome.check == "parameters")
    assert found.verdict == "note" and "nothing reads masscart" in found.messages[0]
