"""Undo gives back every bit, whatever was written, in whatever order."""

from __future__ import annotations

import pytest
import torch

from secateur.apply.undo import Undo


def test_writes_are_taken_back_last_first() -> None:
    weight = torch.tensor([1.0, -0.0, float("inf")])
    held = weight.clone()
    undo = Undo()
    undo.write(weight, torch.zeros(3))
    undo.write(weight, torch.ones(3))
    undo.write(weight[1:], torch.full((2,), 5.0))
    assert weight.tolist() == [1, 5, 5]
    undo.undo()
    assert torch.equal(weight.view(torch.int32), held.view(torch.int32))
    undo.undo()
    assert torch.equal(weight, held), "undoing twice did something"


def test_views_write_through_to_their_tensor() -> None:
    fused = torch.arange(24.0).view(2, 3, 4)
    held, undo = fused.clone(), Undo()
    undo.write(fused[1].t(), torch.zeros(4, 3))
    assert fused[1].abs().sum() == 0 and torch.equal(fused[0], held[0])
    undo.undo()
    assert torch.equal(fused, held)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_takes_everything_back_and_passes(error: type[BaseException]) -> None:
    weight = torch.ones(3)
    with pytest.raises(error), Undo() as undo:
        undo.write(weight, torch.zeros(3))
        raise error
    assert weight.tolist() == [1, 1, 1]


def test_leaving_without_an_exception_keeps_the_change_until_undone() -> None:
    weight = torch.ones(3)
    with Undo() as undo:
        undo.write(weight, torch.zeros(3))
    assert weight.tolist() == [0, 0, 0]
    undo.undo()
    assert weight.tolist() == [1, 1, 1]


def test_released_or_not_kept_changes_are_final() -> None:
    for undo in (Undo(keep=False), Undo()):
        weight = torch.ones(3)
        undo.write(weight, torch.zeros(3))
        undo.release()
        undo.undo()
        assert weight.tolist() == [0, 0, 0]


def test_a_parameter_that_wants_gradients_can_be_written_and_given_back() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    undo = Undo()
    undo.write(weight, torch.zeros(3))
    assert weight.requires_grad and weight.tolist() == [0, 0, 0]
    undo.undo()
    assert weight.tolist() == [1, 1, 1] and weight.grad_fn is None


def test_a_write_of_the_wrong_shape_changes_nothing() -> None:
    weight, undo = torch.ones(3), Undo()
    with pytest.raises(RuntimeError):
        undo.write(weight, torch.zeros(4))
    assert weight.tolist() == [1, 1, 1]
    undo.undo()
    assert weight.tolist() == [1, 1, 1]
