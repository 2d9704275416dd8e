"""Robots in MuJoCo, one at a time and in lanes, on the CPU's threads or under MuJoCo Warp."""
