"""Robots, one file each, with the families of tasks that they are given."""
