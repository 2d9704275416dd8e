"""Graphs that a compiler makes faster."""

import warnings

import pytest
import torch

from metarl.speed import tracing


def test_advice_to_round_is_dropped_also_where_warnings_are_errors_and_others_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = ["TensorFloat32 tensor cores for float32 matrix multiplication available but not enabled.", "slow"]

    def compiler(graph, **options):
        def run(*values):
            if told:
                warnings.warn(told.pop(0), stacklevel=2)
            return graph(*values)

        return run

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: None)
    doubled = tracing.fused(lambda value: [2 * value], torch.device("cuda"))
    assert doubled(torch.ones(2))[0].tolist() == [2, 2]
    with pytest.raises(UserWarning, match="slow"):
        doubled(torch.ones(2))
    assert doubled(torch.ones(2))[0].tolist() == [2, 2]
