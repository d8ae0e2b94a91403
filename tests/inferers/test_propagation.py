"""Both ways: given frames stay, a turned sequence gives the turned answer to the bit, and every walk knows all that was given."""

from dataclasses import dataclass, field

import pytest
import torch

from vesalius.core.errors import UsageError
from vesalius.inferers.propagation import both_ways


@dataclass
class Echo:
    """Gives back its newest mask, weaker by a tenth; notes what it was told."""

    told: list = field(default_factory=list)

    def memory(self):
        return []

    def remember(self, frame, masks, memory, *, given, at):
        self.told.append((frame, given, at))
        return [*memory, masks]

    def carry(self, frame, memory):
        now = memory[-1] * 0.9
        return now, [*memory, now]


class Nonlinear:
    """Anything that depends on all it saw, in order."""

    def memory(self):
        return torch.zeros(2, 4, 4)

    def remember(self, frame, masks, memory, *, given, at):
        return torch.tanh(memory + 0.3 * masks * frame)

    def carry(self, frame, memory):
        return torch.sigmoid(memory * frame), torch.sin(memory + frame)


def masks(value: float) -> torch.Tensor:
    return torch.full((1, 2, 2), value)


def test_given_frames_stay_and_others_fade_with_the_distance():
    out = both_ways(Echo(), lambda t: t, 7, {2: masks(1.0)})[:, 0, 0, 0]
    assert torch.allclose(out, torch.tensor([0.9**2, 0.9, 1, 0.9, 0.9**2, 0.9**3, 0.9**4]))


def test_between_two_given_frames_both_walks_count_by_nearness():
    out = both_ways(Echo(), lambda t: t, 5, {0: masks(1.0), 4: masks(0.0)})[:, 0, 0, 0]
    assert out[0] == 1 and out[4] == 0
    assert torch.allclose(out[1:4], torch.tensor([0.75 * 0.9, 0.5 * 0.9**2, 0.25 * 0.9**3]))


def test_every_walk_knows_all_given_frames_its_own_last_and_remembers_every_nth():
    echo = Echo()
    both_ways(echo, lambda t: t, 9, {1: masks(1.0), 7: masks(0.5)}, every=2)
    given = [[f for f, g, _ in echo.told if g][i : i + 2] for i in range(0, 8, 2)]
    assert given == [[7, 1], [7, 1], [1, 7], [1, 7]]
    assert [f for f, g, _ in echo.told if not g] == [3, 5, 5, 3], "the last frame of a walk (2 and 6 turned round) is remembered by nobody"


def test_places_are_told_along_the_walk():
    echo = Echo()
    both_ways(echo, lambda t: t, 9, {1: masks(1.0), 7: masks(0.5)}, every=2)
    told = [(f, at) for f, _, at in echo.told]
    assert told == [(7, 6), (1, 0), (3, 2), (5, 4), (7, -6), (1, 0), (1, -6), (7, 0), (1, 6), (7, 0), (5, 2), (3, 4)]


@pytest.mark.parametrize("given", [(0,), (5,), (11,), (2, 7), (1, 5, 10)])
def test_a_turned_sequence_gives_the_turned_answer_to_the_bit(given):
    torch.manual_seed(0)
    frames = torch.randn(12, 2, 4, 4)
    references = {t: (torch.rand(2, 4, 4) > 0.5).float() for t in given}
    there = both_ways(Nonlinear(), lambda t: frames[t], 12, references, every=3)
    back = both_ways(Nonlinear(), lambda t: frames[11 - t], 12, {11 - t: m for t, m in references.items()}, every=3)
    assert torch.equal(there, back.flip(0))
    assert all(torch.equal(there[t], m) for t, m in references.items())


def test_a_frame_that_is_none_is_refused():
    for given in ({}, {9: masks(1.0)}, {-1: masks(1.0)}):
        with pytest.raises(UsageError, match="carried on"):
            both_ways(Echo(), lambda t: t, 9, given)
