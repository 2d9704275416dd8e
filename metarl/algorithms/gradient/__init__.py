"""Learners by gradient steps beyond MAML and Reptile, one file each.

``cavia`` moves a few numbers of each task, ``imaml`` differentiates what an inner problem ends in, ``bmaml`` moves
several networks as samples of a posterior, ``leap`` shortens the way from the start to the solutions, and
``meta_lstm`` learns the steps themselves.
"""
