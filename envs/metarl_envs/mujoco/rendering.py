"""Markers and cameras for rendering robots."""

from collections.abc import Mapping
from typing import Any

import mujoco
import numpy as np

from metarl_envs.mujoco.dynamics import Array, Values

Marker = dict[str, Any]
"""A shape without physics, in the form that Gymnasium's viewers accept."""
Camera = Mapping[str, Any]
"""Fields of MuJoCo's free camera. Without ``lookat``, it follows the robot."""

BESIDE: Camera = {"distance": 4.0, "elevation": -15.0, "azimuth": 90.0}
"""From the side, at the height of a robot."""
ABOVE: Camera = {"distance": 5.0, "elevation": -35.0, "azimuth": 90.0}
"""From the side and above."""
GOAL, PACE = np.array([0.0, 0.62, 0.45, 0.8]), np.array([0.84, 0.37, 0.0, 0.8])
"""Colours of goals (green) and of the robot's velocity (orange)."""
OVERHEAD = 1.2
"""Height of arrows, in metres."""
METRES_PER_SPEED = 0.5
"""Length of an arrow, in metres per (metre per second)."""


def column(place: Values) -> Marker:
    """Return a column at a position ``[2]``, in metres."""
    at = np.array([place[0], place[1], 0.5])
    # A cylinder's size is its radius and half of its length.
    return {"type": mujoco.mjtGeom.mjGEOM_CYLINDER, "pos": at, "size": np.array([0.15, 0.5, 0.0]), "rgba": GOAL}


def overview(reach: float) -> Camera:
    """Return a camera high above the origin that sees ``reach`` metres in all directions."""
    return {"distance": 2.5 * reach + 2, "elevation": -50.0, "azimuth": 90.0, "lookat": np.zeros(3)}


def arrows(position: Values, goal: Values, velocity: Values) -> list[Marker]:
    """Return an arrow of the goal velocity above a robot, and above it one of the robot's velocity.

    All arguments are along x (``[]`` or ``[1]``) or along x and y (``[2]``), in metres and metres per second.
    """
    at, goal_velocity, own_velocity = (_in_plane(values) for values in (position, goal, velocity))
    return [_arrow(at, goal_velocity, OVERHEAD, GOAL), _arrow(at, own_velocity, OVERHEAD + 0.15, PACE)]


def _in_plane(values: Values) -> Array:
    """Return values along x, or along x and y, as ``[2]``: without a y, it is 0."""
    return np.resize(np.append(values, 0.0), 2)


def _arrow(at: Array, velocity: Array, height: float, colour: Array) -> Marker:
    speed = float(np.hypot(*velocity))
    forward = np.array([1.0, 0.0, 0.0]) if speed == 0 else np.array([*velocity / speed, 0.0])
    up = np.array([0.0, 0.0, 1.0])
    # MuJoCo's arrows point along their own z axis, and are half as long as their size says.
    turned = np.stack([np.cross(up, forward), up, forward], axis=1)
    size = np.array([0.04, 0.04, 2 * METRES_PER_SPEED * speed])
    kind = mujoco.mjtGeom.mjGEOM_ARROW
    return {"type": kind, "pos": np.array([*at, height]), "size": size, "mat": turned.flatten(), "rgba": colour}
