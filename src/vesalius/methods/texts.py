"""Methods that read texts: a language learnt by guessing what is hidden, and the base of classifiers of texts.

Both read word pieces through one ``networks.text.TextEncoder``, so that what the first learnt the second can start from.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..core.case import Batch, Case, Condition
from ..core.manifest import Manifest
from ..core.method import Clock, Sampling, Stage, Stream
from ..core.plan import Plan
from ..networks.text import MaskedHead, TextEncoder, WordPieces, masked_loss
from .learned import Classifier, LearnedMethod


class MaskedLanguage(LearnedMethod):
    """Guesses hidden pieces of sentences; a warm-up over a tenth of the steps, then a straight line down."""

    clip = 1.0

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        encoder: TextEncoder,
        words: WordPieces,
        length: int,
        *,
        lr: float,
        weight_decay: float,
        masked: float = 0.15,
    ):
        super().__init__(plan, manifest)
        self.encoder, self.head = encoder, MaskedHead(encoder)
        self.words, self.length, self.rates, self.masked = words, length, (lr, weight_decay), masked

    def sampling(self, stage: Stage) -> Sampling:
        return Sampling(unit="case", streams=(Stream("main", self.plan.batch, "all"),))

    def condition(self, case: Case, rng: np.random.Generator) -> Condition:
        return Condition({"ids": torch.from_numpy(self.words.encode(case.text["sentence"], self.length))[None]})

    def losses(self, batch: Batch, clock: Clock, turn: str = "main") -> dict[str, Tensor]:
        return {"masked": masked_loss(self.encoder, self.head, batch.condition.values["ids"], len(self.words), self.masked)}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": adamw(self, *self.rates)}

    def learning_rate(self, clock: Clock) -> float:
        return min(1.0, (clock.step + 1) / max(1, clock.total // 10)) * (1 - clock.fraction)


class TextReader(Classifier):
    """A classifier of texts: the encoder's pooled state, dropout and one linear layer; a constant learning rate."""

    clip = 1.0

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        encoder: TextEncoder,
        words: WordPieces,
        length: int,
        target: str,
        *,
        extra: int = 0,
        lr: float,
        weight_decay: float,
    ):
        super().__init__(plan, manifest, target=target)
        self.encoder, self.words, self.length, self.rates = encoder, words, length, (lr, weight_decay)
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(encoder.width + extra, self.outputs)
        nn.init.normal_(self.head.weight, std=0.02)

    def ids(self, text: str) -> Tensor:
        return torch.from_numpy(self.words.encode(text, self.length))[None]

    def forward(self, image: None, condition: Condition) -> dict[str, Tensor]:
        pooled = self.dropout(self.encoder.pooled(condition.values["ids"]))
        return {self.target: self.head(torch.cat([pooled, *(v for k, v in condition.values.items() if k == "aux")], 1))}

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": adamw(self, *self.rates)}

    def learning_rate(self, clock: Clock) -> float:
        return 1.0


def adamw(module: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """Weights decay, biases and norms do not."""
    matrices, rest = ([p for p in module.parameters() if (p.ndim > 1) == many] for many in (True, False))
    return torch.optim.AdamW([{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}], lr=lr, eps=1e-8)
