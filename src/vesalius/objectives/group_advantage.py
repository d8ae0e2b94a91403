"""The group-relative policy step: reinforcement without a value network. What one action earned is compared with what its group earned.

Shao et al., DeepSeekMath, 2024, https://arxiv.org/abs/2402.03300, section 4.1 (GRPO): the group's mean is the baseline, the ratio to an
older policy is clipped as in PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347, eq. 7), and the step away from that policy costs
an unbiased estimate of the KL divergence. The defaults are those of Wu et al., Glance and Focus Reinforcement for Pan-cancer Screening,
ICLR 2026, https://arxiv.org/abs/2601.19103.
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_advantage(rewards: Tensor, *, least_sd: float = 0.01, most: float = 5.0) -> Tensor:
    """(..., G) rewards -> (r - mean) / max(sd, ``least_sd``) within each group, cut to -``most``..``most``; 0 when all earned the same.

    ``sd`` is the sample's (divided by G - 1); a group of one has the advantage 0. Detached: a reward is no differentiable function.
    """
    rewards = rewards.detach().float()
    apart = rewards - rewards.mean(-1, keepdim=True)
    sd = rewards.std(-1, correction=min(1, rewards.shape[-1] - 1), keepdim=True)
    return (apart / sd.clamp_min(least_sd)).clamp(-most, most)


def clipped_policy(log_p: Tensor, log_old: Tensor, advantage: Tensor, *, clip: float = 0.1) -> Tensor:
    """-mean min(rho A, clip(rho, 1 -+ ``clip``) A) with rho = exp(log_p - log_old) held within 0.01..5, over actions (..., G).

    ``log_p`` and ``log_old``: the log probabilities of the rewarded actions under the policy that learns and under the older one.
    """
    ratio = (log_p.float() - log_old.detach().float()).exp().clamp(0.01, 5.0)
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def kl_to_old(log_p: Tensor, log_old: Tensor) -> Tensor:
    """mean(q - log q - 1) with q = old / new probability of the actions, held within 1e-4..1e4: at least 0, and 0 for equal policies
    (the k3 estimate, http://joschu.net/blog/kl-approx.html)."""
    q = (log_old.detach().float() - log_p.float()).exp().clamp(1e-4, 1e4)
    return (q - q.log() - 1).mean()


def group_policy(log_p: Tensor, log_old: Tensor, rewards: Tensor, *, clip: float = 0.1, kl: float = 0.01) -> dict[str, Tensor]:
    """The step's two terms: 'policy', the clipped one under the group's advantages, and 'kl', times its weight. All (..., G)."""
    advantage = group_advantage(rewards)
    return {"policy": clipped_policy(log_p, log_old, advantage, clip=clip), "kl": kl * kl_to_old(log_p, log_old)}
