"""Control task families and their Gymnasium environments. Importing this package registers the environments.

``gymnasium.make("metarl/PointNavigation-v0", goal=(0.1, 0.2))`` makes one environment of one task.
``gymnasium.make_vec("metarl/PointNavigation-v0", num_envs=8)`` makes a batch; its lanes receive their tasks through
``reset(options={"goal": ...})``, one row per lane.

A family is a file: ``navigation``, ``navigation_picture``, ``bandit``, ``tabular``; or a robot of ``robots`` times a
task over any robot, ``goal_velocity``, ``goal_direction`` or ``goal_position``, simulated by ``mujoco``. Start reading
in ``navigation``, or in ``robots.half_cheetah``. Nothing heavy is imported here: Gymnasium imports what it makes.
"""

from gymnasium.envs.registration import register

register(
    "metarl/PointNavigation-v0",
    "metarl_envs.navigation:make_env",
    vector_entry_point="metarl_envs.navigation:make_vector_env",
    max_episode_steps=100,
)
register(
    "metarl/PointNavigationPicture-v0",
    "metarl_envs.navigation_picture:make_env",
    vector_entry_point="metarl_envs.navigation_picture:make_vector_env",
    max_episode_steps=100,
)
register(
    "metarl/Bandit-v0",
    "metarl_envs.bandit:make_env",
    vector_entry_point="metarl_envs.bandit:make_vector_env",
    max_episode_steps=100,
)
register(
    "metarl/TabularMDP-v0",
    "metarl_envs.tabular:make_env",
    vector_entry_point="metarl_envs.tabular:make_vector_env",
    max_episode_steps=10,
)
for robot_family in (
    "robots.half_cheetah:HalfCheetahDirection",
    "robots.half_cheetah:HalfCheetahVelocity",
    "robots.ant:AntDirection",
    "robots.ant:AntGoal",
    "robots.ant:AntVelocity",
):
    register(
        f"metarl/{robot_family.partition(':')[2]}-v0",
        "metarl_envs.mujoco:make_env",
        vector_entry_point="metarl_envs.mujoco:make_vector_env",
        max_episode_steps=200,
        kwargs={"family": f"metarl_envs.{robot_family}"},
    )
