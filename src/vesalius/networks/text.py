"""Text as a network reads it: sentences, word pieces learnt from the training texts, a BERT encoder, and an LSTM for short expressions.

Devlin et al., BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, NAACL 2019,
https://arxiv.org/abs/1810.04805; word pieces: Wu et al. 2016, https://arxiv.org/abs/1609.08144 (learnt by merging the most frequent pair).
"""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, linear

from ..core.errors import DataError, UsageError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, UNK, CLS, SEP, MASK = range(len(SPECIAL))
_WORD = re.compile(r"[^\W_]+|[^\w\s]|_")
_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'(\[])|\s*\n\s*")
_GOES_ON = re.compile(r"(^\(?\d{1,2}[.)]|\b(dr|mr|mrs|ms|prof|vs|fig|approx|e\.g|i\.e|cf|ca)\.)$", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """A text's sentences in order, none empty; together they hold all its words once. A new line ends one; an abbreviation ('vs.') or an
    item's number ('2.') does not."""
    out: list[str] = []
    for part in _END.split(text.strip()):
        if out and _GOES_ON.search(out[-1]):
            out[-1] = f"{out[-1]} {part}".strip()
        elif part:
            out.append(part)
    return out


def words_of(text: str) -> list[str]:
    """Words, numbers and marks in lower case: 'BI-RADS 4' -> bi, -, rads, 4."""
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class WordPieces:
    """A vocabulary: ``pieces`` by id, those that continue a word begin with '##'. It is learnt, so it belongs to a method's state."""

    pieces: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    @classmethod
    def learn(cls, texts: Iterable[str], size: int = 2000, least: int = 2) -> WordPieces:
        """At most ``size`` pieces: the special ones, every character, then the most frequent neighbours merged again and again, as long as
        they meet ``least`` times. The order of the texts does not matter. Raises DataError where there is no word."""
        counts = Counter(word for text in texts for word in words_of(text))
        if not counts:
            raise DataError("there is no text to learn words from")
        words = sorted(counts)
        split = [[w[0], *(f"##{c}" for c in w[1:])] for w in words]
        pieces = [*SPECIAL, *sorted({p for parts in split for p in parts})]
        known, found, where = set(pieces), Counter(), defaultdict(set)
        for i, parts in enumerate(split):
            for pair in zip(parts, parts[1:]):
                found[pair] += counts[words[i]]
                where[pair].add(i)
        heap = [(-n, pair) for pair, n in found.items()]
        heapq.heapify(heap)
        while heap and len(pieces) < size:
            n, pair = heapq.heappop(heap)
            if found[pair] != -n or -n < least:  # an older count, or too rare
                continue
            merged = pair[0] + pair[1].removeprefix("##")
            if merged not in known:
                known.add(merged)
                pieces.append(merged)
            touched = set()
            for i in where.pop(pair):
                old = split[i]
                split[i] = new = _merge(old, pair, merged)
                for parts, sign in ((old, -1), (new, 1)):
                    for p in zip(parts, parts[1:]):
                        found[p] += sign * counts[words[i]]
                        touched.add(p)
                        if sign > 0:
                            where[p].add(i)
            for p in touched:
                heapq.heappush(heap, (-found[p], p))
        return cls(tuple(pieces[: max(size, len(SPECIAL))]))

    def encode(self, text: str, length: int) -> np.ndarray:
        """(length,) int64: [CLS], the text's pieces as far as they fit, [SEP], padding."""
        ids = [i for word in words_of(text) for i in self._word(word)][: length - 2]
        return np.array([CLS, *ids, SEP] + [PAD] * (length - 2 - len(ids)), np.int64)

    def _word(self, word: str) -> list[int]:
        """The longest known piece, then the longest that goes on, ...; [UNK] where none fits."""
        out, start = [], 0
        while start < len(word):
            head = "##" if start else ""
            end = next((e for e in range(len(word), start, -1) if head + word[start:e] in self.ids), 0)
            if not end:
                return [UNK]
            out.append(self.ids[head + word[start:end]])
            start = end
        return out


def _merge(parts: Sequence[str], pair: tuple[str, str], merged: str) -> list[str]:
    out: list[str] = []
    k = 0
    while k < len(parts):
        hit = tuple(parts[k : k + 2]) == pair
        out.append(merged if hit else parts[k])
        k += 2 if hit else 1
    return out


class LastState(nn.Module):
    """An LSTM's state after the last piece: ids (B, n) -> (B, hidden). Padding behind a text does not count."""

    def __init__(self, words: int, *, width: int = 64, hidden: int = 64):
        super().__init__()
        self.token = nn.Embedding(words, width, padding_idx=PAD)
        self.lstm = nn.LSTM(width, hidden, batch_first=True)
        with torch.no_grad():
            self.lstm.bias_hh_l0[hidden : 2 * hidden] = 1.0  # it remembers to begin with (Gers et al. 2000)

    def forward(self, ids: Tensor) -> Tensor:
        last = (ids != PAD).sum(1).clamp(min=1) - 1
        states = self.lstm(self.token(ids[:, : int(last.max()) + 1]))[0]
        return states[torch.arange(len(ids), device=ids.device), last]


class BagOfWords(nn.Module):
    """The pieces' mean embedding, whatever their order: ids (B, n) -> (B, hidden)."""

    def __init__(self, words: int, *, width: int = 64, hidden: int = 64):
        super().__init__()
        self.token = nn.Embedding(words, width, padding_idx=PAD)
        self.out = nn.Linear(width, hidden)

    def forward(self, ids: Tensor) -> Tensor:
        counts = (ids != PAD).unsqueeze(-1).to(self.token.weight.dtype)
        return self.out((self.token(ids) * counts).sum(1) / counts.sum(1).clamp(min=1)).tanh()


class TextEncoder(nn.Module):
    """BERT: token and position embeddings, ``layers`` post-norm transformer layers; ids (B, n) -> states (B, m, width), m the longest text
    of the batch. ``words`` bounds the vocabulary."""

    def __init__(self, words: int, *, width: int = 64, layers: int = 2, heads: int = 2, positions: int = 512, dropout: float = 0.1):
        super().__init__()
        if width % heads:
            raise UsageError("the heads share the width evenly", where="width, heads", found=(width, heads))
        self.width, self.positions = width, positions
        self.token, self.position = nn.Embedding(words, width, padding_idx=PAD), nn.Embedding(positions, width)
        self.norm, self.dropout = nn.LayerNorm(width, eps=1e-12), nn.Dropout(dropout)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", layer_norm_eps=1e-12, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.pooler = nn.Linear(width, width)
        for module in self.modules():
            for name, p in module.named_parameters(recurse=False):
                if p.ndim > 1:
                    nn.init.normal_(p, std=0.02)
                elif name.endswith("bias"):
                    nn.init.zeros_(p)
        with torch.no_grad():
            self.token.weight[PAD] = 0

    def forward(self, ids: Tensor) -> Tensor:
        longest = int((ids != PAD).sum(1).max())
        ids = ids[:, : min(longest, self.positions)]
        x = self.token(ids) + self.position.weight[: ids.shape[1]]
        return self.layers(self.dropout(self.norm(x)), src_key_padding_mask=ids == PAD)

    def pooled(self, ids: Tensor) -> Tensor:
        """(B, width): tanh of a linear map of the state at [CLS], BERT's summary of a text."""
        return self.pooler(self(ids)[:, 0]).tanh()


class MaskedHead(nn.Module):
    """Which piece stood at a masked place: states -> logits over the vocabulary, whose weights are the token embedding's."""

    def __init__(self, encoder: TextEncoder):
        super().__init__()
        self.dense, self.norm = nn.Linear(encoder.width, encoder.width), nn.LayerNorm(encoder.width, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(encoder.token.num_embeddings))

    def forward(self, states: Tensor, embedding: Tensor) -> Tensor:
        return linear(self.norm(gelu(self.dense(states))), embedding, self.bias)


def mask(ids: Tensor, words: int, share: float = 0.15) -> tuple[Tensor, Tensor]:
    """(B, n) ids -> (ids with some hidden, bool where): of ``share`` of the pieces 80 % become [MASK], 10 % another piece, 10 % stay."""
    chosen = (torch.rand(ids.shape, device=ids.device) < share) & (ids >= len(SPECIAL))
    turn = torch.rand(ids.shape, device=ids.device)
    other = torch.randint(len(SPECIAL), max(words, len(SPECIAL) + 1), ids.shape, device=ids.device)
    hidden = torch.where(turn < 0.8, torch.full_like(ids, MASK), torch.where(turn < 0.9, other, ids))
    return torch.where(chosen, hidden, ids), chosen


def masked_loss(encoder: TextEncoder, head: MaskedHead, ids: Tensor, words: int, share: float = 0.15) -> Tensor:
    """Mean cross-entropy of the hidden pieces; 0 where chance hid none."""
    hidden, chosen = mask(ids, words, share)
    states = encoder(hidden)
    chosen, ids = chosen[:, : states.shape[1]], ids[:, : states.shape[1]]
    if not chosen.any():
        return states.sum() * 0
    return cross_entropy(head(states[chosen], encoder.token.weight), ids[chosen])


# ----------------------------------------------------------------------------------------------------------------- published encoders
_BERT = {  # the published names of what TextEncoder has once
    "embeddings.word_embeddings.weight": "token.weight",
    "embeddings.position_embeddings.weight": "position.weight",
    "embeddings.LayerNorm.weight": "norm.weight",
    "embeddings.LayerNorm.bias": "norm.bias",
    "pooler.dense.weight": "pooler.weight",
    "pooler.dense.bias": "pooler.bias",
}
_LAYER = {  # and in each layer
    "attention.output.dense": "self_attn.out_proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "linear1",
    "output.dense": "linear2",
    "output.LayerNorm": "norm2",
}


def read_bert(folder: Path) -> tuple[WordPieces, dict[str, int], dict[str, Tensor]]:
    """A published BERT from a folder with config.json, vocab.txt and model.safetensors: its pieces (the special ones moved to the front, as
    here), the shape options and the weights of ``TextEncoder``; the embedding of the first segment is added to the positions'.

    UsageError: no such folder or file. DataError: another architecture, or tensors that are missing.
    """
    from safetensors.torch import load_file

    for name in ("config.json", "vocab.txt", "model.safetensors"):
        if not (folder / name).is_file():
            fix = "give a folder with config.json, vocab.txt and model.safetensors"
            raise UsageError(f"the text encoder has no {name}", where=folder, fix=fix)
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu" or config["intermediate_size"] != 4 * config["hidden_size"]:
        found = ", ".join(f"{k} {config.get(k)}" for k in ("model_type", "hidden_act", "intermediate_size", "hidden_size"))
        raise DataError("this is no BERT", where=folder, found=found, allowed="model_type bert, gelu, intermediate size 4 x hidden size")
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    if not set(SPECIAL) <= set(pieces):
        raise DataError("the vocabulary lacks special pieces", where=folder / "vocab.txt", allowed=", ".join(SPECIAL))
    order = sorted(range(len(pieces)), key=lambda i: (SPECIAL.index(pieces[i]) if pieces[i] in SPECIAL else len(SPECIAL), i))
    given = {k.removeprefix("bert."): v.float() for k, v in load_file(folder / "model.safetensors").items()}
    try:
        state = {ours: given[theirs] for theirs, ours in _BERT.items()}
        state["token.weight"] = state["token.weight"][order]
        state["position.weight"] = state["position.weight"] + given["embeddings.token_type_embeddings.weight"][0]
        for n in range(config["num_hidden_layers"]):
            theirs, ours = f"encoder.layer.{n}.", f"layers.layers.{n}."
            for kind in ("weight", "bias"):
                qkv = [given[f"{theirs}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
                state[f"{ours}self_attn.in_proj_{kind}"] = torch.cat(qkv)
                state |= {f"{ours}{b}.{kind}": given[f"{theirs}{a}.{kind}"] for a, b in _LAYER.items()}
    except KeyError as e:
        raise DataError("the weights lack a tensor of BERT", where=folder / "model.safetensors", found=f"no {e.args[0]}") from None
    shape = {"width": config["hidden_size"], "layers": config["num_hidden_layers"], "heads": config["num_attention_heads"]}
    shape["positions"] = config["max_position_embeddings"]
    return WordPieces(tuple(pieces[i] for i in order)), shape, state
