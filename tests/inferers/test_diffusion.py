"""Diffusion sampling: the schedule's algebra, the known answer of Gaussian data, and diffusers' scheduler as a judge."""

import pytest
import torch

from vesalius.core.errors import UsageError
from vesalius.inferers.diffusion import Sampler, Schedule, seeded_noise

SCHEDULE = Schedule()
KINDS = ("noise", "signal", "velocity")


def pair(n: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signals, noise (n, 4, 3, 3) and times from the first to the last."""
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 4, 3, 3, generator=g), torch.randn(n, 4, 3, 3, generator=g), torch.linspace(0, 999, n).long()


def answer(kind: str, signal: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    a, s = SCHEDULE.weights(t, signal)
    return {"noise": noise, "signal": signal, "velocity": a * noise - s * signal}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_true_answer_gives_the_signal_and_the_noise_at_every_time(kind):
    signal, noise, t = pair()
    found = SCHEDULE.split(answer(kind, signal, noise, t), SCHEDULE.noisy(signal, noise, t), t, kind)
    for ours, true in zip(found, (signal, noise), strict=True):
        assert float((ours - true).abs().mean()) < 1e-5
    wide = [x.double() for x in (signal, noise)]
    found = SCHEDULE.split(answer(kind, *wide, t), SCHEDULE.noisy(*wide, t), t, kind)
    for ours, true in zip(found, wide, strict=True):
        torch.testing.assert_close(ours, true, atol=1e-12, rtol=0)


def test_variance_is_kept_and_ends_in_noise():
    a, s = SCHEDULE.weights(torch.arange(1000), torch.zeros(1000, 1, dtype=torch.float64))
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a))
    assert (a.diff(dim=0) < 0).all() and float(a[0] ** 2) == pytest.approx(1 - 0.0015) and 0 < float(a[-1]) < 0.03


@pytest.mark.parametrize("kind", ["scaled", "linear"])
@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("steps", [1, 5, 50])
def test_every_step_is_that_of_diffusers(kind, predicts, steps):
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule(kind=kind)
    judge = diffusers.DDIMScheduler(
        beta_start=schedule.first,
        beta_end=schedule.last,
        beta_schedule={"scaled": "scaled_linear", "linear": "linear"}[kind],
        prediction_type={"noise": "epsilon", "signal": "sample", "velocity": "v_prediction"}[predicts],
        clip_sample=False,
        timestep_spacing="trailing",
    )
    judge.set_timesteps(steps)
    network = lambda x, t: torch.sin(3 * x) * (0.5 + t.view(-1, 1, 1, 1) / 2000)
    start = seeded_noise((2, 4, 3, 3), 1).double()
    theirs = start
    for t in judge.timesteps:
        theirs = judge.step(network(theirs, t.expand(2)), t, theirs).prev_sample
    ours = Sampler(schedule, steps, predicts)
    assert ours.times == judge.timesteps.tolist()
    torch.testing.assert_close(ours(network, start), theirs, atol=1e-4, rtol=1e-4)
    signal, noise, t = pair()
    torch.testing.assert_close(schedule.noisy(signal, noise, t), judge.add_noise(signal, noise, t), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_the_network_is_called_once_a_step_from_the_last_time_down(steps):
    seen: list[int] = []

    def network(x, t):
        assert t.shape == (3,) and (t == t[0]).all()
        seen.append(int(t[0]))
        return torch.zeros_like(x)

    Sampler(SCHEDULE, steps)(network, torch.randn(3, 2, 2))
    assert len(seen) == steps and seen[0] == 999 and seen == sorted(set(seen), reverse=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [1, 3, 20])
def test_a_network_that_knows_the_signal_gives_it_in_any_number_of_steps(kind, steps):
    signal = pair()[0].double()

    def oracle(x, t):
        a, s = SCHEDULE.weights(t, x)
        return answer(kind, signal, (x - a * signal) / s, t)

    found = Sampler(SCHEDULE, steps, kind)(oracle, torch.randn_like(signal))
    torch.testing.assert_close(found, signal, atol=1e-8, rtol=0)


def test_gaussian_data_has_a_known_answer_which_one_step_misses():
    """Signals of sd 0.5: the best noise estimate is s x / (a^2 / 4 + s^2). Many steps carry noise to samples of that sd along a straight
    line; one step gives their mean given the noise, hardly more than 0."""
    start = torch.linspace(-2, 2, 9, dtype=torch.float64).view(-1, 1)

    def best(x, t):
        a, s = SCHEDULE.weights(t, x)
        return s * x / (0.25 * a**2 + s**2)

    a, s = (float(w) for w in SCHEDULE.weights(torch.tensor([999]), start[:1]))
    end = 0.25 * a**2 + s**2
    torch.testing.assert_close(Sampler(SCHEDULE, 1000)(best, start), start * 0.5 / end**0.5, rtol=0.02, atol=0)
    torch.testing.assert_close(Sampler(SCHEDULE, 1)(best, start), start * a * 0.25 / end, rtol=1e-6, atol=0)


def test_seeded_noise_is_the_seeds():
    assert torch.equal(seeded_noise((2, 3), 5), seeded_noise((2, 3), 5))
    assert not torch.equal(seeded_noise((2, 3), 5), seeded_noise((2, 3), 6))
    state = torch.get_rng_state()
    seeded_noise((2, 3), 5)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(UsageError, match="steps.*1 to 1000"):
        Sampler(SCHEDULE, steps)


@pytest.mark.parametrize("betas", [(0.0, 0.1), (0.2, 0.1), (0.1, 1.0)])
def test_impossible_betas_are_refused(betas):
    with pytest.raises(UsageError, match="betas"):
        Schedule(1000, *betas)
