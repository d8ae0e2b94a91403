"""The group-relative policy step: known answers of each term, and where its gradient points."""

import math

import pytest
import torch

from vesalius.objectives.group_advantage import clipped_policy, group_advantage, group_policy, kl_to_old


def chances(n, seed=0):
    """Logits of 'look' (n,) that want a gradient, and their log probabilities."""
    z = torch.randn(n, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    return z, torch.nn.functional.logsigmoid(z)


def test_advantage_is_the_reward_against_its_group():
    a = group_advantage(torch.tensor([1.0, 0.0, 0.0, 1.0]))
    sd = math.sqrt(4 * 0.25 / 3)  # of the sample
    torch.testing.assert_close(a, torch.tensor([0.5, -0.5, -0.5, 0.5]) / sd)
    both = group_advantage(torch.tensor([[1.0, 0, 0, 1], [5.0, 5, 5, 5]]))
    torch.testing.assert_close(both[0], a)  # groups do not see each other
    assert not both[1].any()


def test_advantage_of_a_rare_reward_and_of_tiny_differences_is_bounded():
    rare = group_advantage(torch.nn.functional.one_hot(torch.tensor(3), 100).float())
    assert rare[3] == 5 and rare.min() > -0.2
    tiny = group_advantage(torch.tensor([0.0, 0.001]))
    torch.testing.assert_close(tiny, torch.tensor([-0.05, 0.05]))  # divided by 0.01, not by their own sd
    assert group_advantage(torch.tensor([1.0])).tolist() == [0.0]


def test_equal_rewards_leave_the_kl_term_alone():
    for reward in (torch.zeros(6), torch.ones(6)):
        z, log_p = chances(6)
        terms = group_policy(log_p, log_p.detach() - 0.3, reward, kl=0.01)
        assert terms["policy"].item() == 0
        (only,) = torch.autograd.grad(sum(terms.values()), z, retain_graph=True)
        (kl,) = torch.autograd.grad(0.01 * kl_to_old(log_p, log_p.detach() - 0.3), z)
        torch.testing.assert_close(only, kl)
        assert kl.abs().max() > 0


def test_the_same_policy_has_ratio_one_and_no_kl():
    z, log_p = chances(8)
    advantage = group_advantage(torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0]))
    loss = clipped_policy(log_p, log_p.detach(), advantage)
    torch.testing.assert_close(loss, -advantage.mean())
    assert kl_to_old(log_p, log_p.detach()).item() == 0
    (g,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(g, -advantage * (1 - torch.sigmoid(z.detach())) / 8)  # REINFORCE with the group's mean as baseline


def test_raising_one_reward_turns_its_action_towards_looking():
    z, log_p = chances(8)
    rewards = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0])
    raised = rewards.clone()
    raised[5] = 1
    before, after = (
        torch.autograd.grad(clipped_policy(log_p, log_p.detach(), group_advantage(r)), z, retain_graph=True)[0] for r in (rewards, raised)
    )
    assert before[5] > 0 > after[5]  # descent: less look, then more look
    assert (after[:5] > before[:5]).all() and (after[6:] > before[6:]).all()  # and everybody else is worth less in comparison


@pytest.mark.parametrize(
    "ratio,advantage,wanted,moves", [(1.5, 1.0, 1.1, False), (0.5, 1.0, 0.5, True), (1.5, -1.0, -1.5, True), (0.5, -1.0, -0.9, False)]
)
def test_steps_beyond_the_clip_are_not_paid_for(ratio, advantage, wanted, moves):
    log_p = torch.tensor([math.log(0.5)]).requires_grad_()
    loss = clipped_policy(log_p, log_p.detach() - math.log(ratio), torch.tensor([advantage]))
    assert loss.item() == pytest.approx(-wanted, rel=1e-5)
    (g,) = torch.autograd.grad(loss, log_p)
    assert bool(g.abs() > 0) is moves


def test_kl_is_its_formula_and_never_negative():
    new, old = torch.tensor([0.2, 0.7, 0.5]), torch.tensor([0.4, 0.7, 0.1])
    q = old / new
    torch.testing.assert_close(kl_to_old(new.log(), old.log()), (q - q.log() - 1).mean())
    assert kl_to_old(torch.tensor([0.0]), torch.tensor([-80.0])).item() == pytest.approx(
        1e-4 - math.log(1e-4) - 1, rel=1e-4
    )  # held, not inf
    assert torch.isfinite(kl_to_old(torch.tensor([-300.0]), torch.tensor([0.0])))


def test_rewards_and_the_old_policy_take_no_gradient():
    z, log_p = chances(4)
    old = log_p.detach().clone().requires_grad_()
    rewards = torch.tensor([1.0, 0, 0, 0]).requires_grad_()
    sum(group_policy(log_p, old, rewards).values()).backward()
    assert old.grad is None and rewards.grad is None and z.grad is not None
