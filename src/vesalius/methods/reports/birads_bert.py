"""BI-RADS BERT: a report is first cut into its sections, then each field is read from the section where it is written.

A BERT is pre-trained on the sentences of the training reports (masked pieces). One copy labels sentences with their section; beside the
sentence it is told the label of the sentence before, the sentence's number and how many there are. Further copies answer one field each.

Kuling, Curpen and Martel, BI-RADS BERT & Using Section Segmentation to Understand Radiology Reports, J. Imaging 2022,
https://arxiv.org/abs/2110.07552. Deviations: the encoder is small by default (2 layers of 64, lr 1e-3 for 5e-5) and trained for a budget of
iterations instead of epochs; training sentences come from a case's section texts in their order; [inferred]: one linear layer as the head.

Key components: ``networks.text`` (sentences, word pieces learnt from the training texts, the encoder, masked pieces, published BERTs from a
folder); ``methods.texts`` (the language model, the base of the readers); ``SentenceSection.label``, which goes through a report sentence by
sentence; ``SectionField``, which sees its sections alone.

Good to know: the sections of prediction are those that training texts are named by; a field whose section a report lacks gets no answer
and a note. A sentence that fits no section is still put into the likeliest one, and the note counts such sentences. Every field trains a
copy of the encoder: with a large ``tower`` a model takes its size once for each part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...core.case import Case, Condition
from ...core.errors import DataError, UsageError
from ...core.manifest import Manifest
from ...core.method import Method, Run
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...networks.text import TextEncoder, WordPieces, read_bert, sentences
from ...ops.sections import REPORT, field_of, in_order, passage
from ...ops.tabular import target_of
from ..texts import MaskedLanguage, TextReader

UNSURE = 0.5


def each_sentence(case: Case) -> Iterator[Case]:
    """A report's sentences as cases: text 'sentence', its section, and the auxiliary data: the section before (None at the start), the
    sentence's number and how many there are. A report without section texts gives its sentences without a section."""
    known = {k: t for k, t in case.text.items() if k != REPORT} or {"": case.text.get(REPORT, "")}
    lines = [(section, line) for section, text in known.items() for line in sentences(text)]
    for n, (section, line) in enumerate(lines):
        table = {"section": section or None, "before": lines[n - 1][0] if n else None, "number": n, "of": len(lines)}
        yield Case(f"{case.id}/{n}", case.patient, text={"sentence": line}, table=table)


class BiradsBERT(Method):
    """Gives text[<section>], the report's sentences by section, and table[<field>], {level: probability}.

    A case has the text 'report', or is cut into sections already; in training its other texts are the sections. ``fields``:
    'column' or 'column:section' (several joined by '+'), the column of the table and where it is read; without a section the whole report
    is read; empty: all columns the data set declares as targets. ``aux``: the section model is told what stands around a sentence.
    ``words`` pieces are learnt from the training texts; ``tower``: a folder with a BERT's config.json, vocab.txt and model.safetensors
    to start from instead (then ``words``, ``width``, ``layers`` and ``heads`` are its own). ``length`` and ``field_length``: pieces of a
    sentence and of a section at most. ``pretrain``: the share of the budget for masked pieces (0: none).
    """

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        fields: tuple[str, ...] = (),
        aux: bool = True,
        words: int = 2000,
        width: int = 64,
        layers: int = 2,
        heads: int = 2,
        dropout: float = 0.1,
        tower: str = "",
        length: int = 32,
        field_length: int = 512,
        pretrain: float = 0.3,
        masked: float = 0.15,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
    ):
        super().__init__(plan, manifest, parts=parts)
        if not 0 <= pretrain < 1 or not 0 < masked < 1 or min(length, field_length) < 3:
            allowed = "0 <= pretrain < 1, 0 < masked < 1, length and field_length of 3 or more"
            raise UsageError("no such training", found=(pretrain, masked, length, field_length), allowed=allowed)
        self.asked = dict(field_of(f) for f in fields)
        self.shape = dict(width=width, layers=layers, heads=heads, positions=max(length, field_length), dropout=dropout)
        self.aux, self.size, self.folder, self.length, self.field_length = aux, words, tower, length, field_length
        self.pretrain, self.masked, self.rates = pretrain, masked, dict(lr=lr, weight_decay=weight_decay)
        self.words, self.sections, self.targets = WordPieces(()), (), {}

    # training ------------------------------------------------------------------------------------------------------------------------
    def fit(self, train: Sequence[str], val: Sequence[str], run: Run) -> BiradsBERT:
        told = [c for c in train if any(self.manifest[c].text.values())]
        texts = {c: run.prepared(c).text for c in told}
        if not told:
            raise DataError(
                "no training case has a text", where=self.manifest.name, fix="name it in a column text:report or text:<section>"
            )
        self.sections = in_order([[k for k in t if k != REPORT] for t in texts.values()])
        self.targets = self._learn_targets(told)
        weights = None
        if self.folder:
            self.words, shape, weights = read_bert(Path(self.folder))
            self.shape |= shape
        else:
            lines = (line for t in texts.values() for line in (t.values() if self.sections else [t[REPORT]]))
            self.words = WordPieces.learn(lines, self.size)
        self._furnish()
        language, others = self.parts["language"], [p for n, p in self.parts.items() if n != "language"]
        if weights is not None:
            language.encoder.load_state_dict(weights)
        if self.pretrain:
            run.train(language, told, (), name="language", share=self.pretrain, unfold=each_sentence)
        left = 1 - self.pretrain
        cutting = left * (0.0 if not self.sections else 0.4 if self.targets else 1.0)
        for part in others:
            part.encoder.load_state_dict(language.encoder.state_dict())
        if "section" in self.parts:
            cut = [c for c in told if set(texts[c]) - {REPORT}]
            run.train(self.parts["section"], cut, (), name="section", share=cutting, unfold=each_sentence)
        for name, column in zip(self._fields, self.targets, strict=True):
            known = [c for c in told if self.manifest[c].table.get(column) not in (None, "")]
            run.train(self.parts[name], known, (), name=name, share=(left - cutting) / len(self.targets))
        return self

    def _learn_targets(self, told: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Column -> {kind, levels, sections}: as the data set declares it, else nominal with the levels of the training cases."""
        out: dict[str, dict[str, Any]] = {}
        for column, where in (self.asked or dict.fromkeys(self.manifest.targets, ())).items():
            odd = next((s for s in where if s not in self.sections), None)
            if odd is not None:
                found = ", ".join(self.sections) or "no section texts"
                raise UsageError(f"no training case has the section '{odd}'", where="--set fields", found=found)
            said = target_of([self.manifest[c].table for c in told], column, self.manifest.targets.get(column))
            out[column] = {**said, "sections": list(where)}
        if not out and not self.sections:
            fix = "give section texts (columns text:<section>) or name columns with --set fields=COLUMN"
            raise DataError("there is nothing to learn from these reports", where=self.manifest.name, fix=fix)
        return out

    def _furnish(self) -> None:
        """The parts, untrained, for the words, sections and targets that were learnt."""
        if max(self.length, self.field_length) > self.shape["positions"]:
            found = (self.length, self.field_length)
            raise UsageError("the tower reads shorter texts", where="length, field_length", found=found, allowed=self.shape["positions"])
        manifest = replace(self.manifest, targets=self.targets)
        make = lambda: TextEncoder(len(self.words), **self.shape)
        self.parts["language"] = MaskedLanguage(self.plan, manifest, make(), self.words, self.length, masked=self.masked, **self.rates)
        if self.sections:
            said = {"section": {"kind": "nominal", "levels": list(self.sections)}}
            own = replace(manifest, targets=said)
            self.parts["section"] = SentenceSection(self.plan, own, make(), self.words, self.length, aux=self.aux, **self.rates)
        for name, (column, said) in zip(self._fields, self.targets.items(), strict=True):
            part = SectionField(self.plan, manifest, make(), self.words, self.field_length, column, tuple(said["sections"]), **self.rates)
            self.parts[name] = part

    @property
    def _fields(self) -> tuple[str, ...]:
        """The field parts' names: numbers, since columns may hold any character."""
        return tuple(f"field{i}" for i in range(len(self.targets)))

    # prediction ----------------------------------------------------------------------------------------------------------------------
    def predict(self, case: Case, prompts: Sequence = (), *, rng: np.random.Generator) -> Prediction:
        text, notes = {k: t for k, t in case.text.items() if k != REPORT}, []
        lines = sentences(case.text.get(REPORT, ""))
        if not lines and not any(t.strip() for t in text.values()):
            found = ", ".join(case.text) or "no text"
            raise DataError("there is no report to read", where=f"case {case.id}", found=found, allowed=f"text:{REPORT} or the sections")
        if lines and self.sections:
            cut = self.cut(lines)
            text = {s: " ".join(line for line, (own, _) in zip(lines, cut, strict=True) if own == s) for s in self.sections}
            text = {s: t for s, t in text.items() if t}
            unsure = sum(p < UNSURE for _, p in cut)
            if unsure:
                notes.append(f"{unsure} of {len(lines)} sentences fit no section well (probability below {UNSURE})")
        known = {REPORT: " ".join(lines) or " ".join(text.values()), **text}
        table = {}
        for name, (column, said) in zip(self._fields, self.targets.items(), strict=True):
            if passage(known, said["sections"]):
                table |= self.parts[name].predict(case.with_(text=known), rng=rng).table
            else:
                notes.append(f"'{column}' has no answer: the report has no sentence in {' or '.join(said['sections'])}")
        return Prediction(text=text, table=table, notes=tuple(notes))

    def cut(self, lines: Sequence[str]) -> list[tuple[str, float]]:
        """Section and its probability of a report's sentences, one after the other: each is told what was said of the one before."""
        return self.parts["section"].label(lines)

    # state ---------------------------------------------------------------------------------------------------------------------------
    def state(self) -> tuple[dict[str, np.ndarray], dict]:
        tensors, facts = super().state()
        own = {"words": list(self.words.pieces), "sections": list(self.sections), "targets": self.targets, "shape": self.shape}
        return tensors, {**facts, **own}

    def load_state(self, tensors: Mapping[str, np.ndarray], facts: Mapping) -> None:
        self.words, self.sections = WordPieces(tuple(facts["words"])), tuple(facts["sections"])
        self.targets, self.shape = {k: dict(v) for k, v in facts["targets"].items()}, dict(facts["shape"])
        if self.words.pieces:
            self._furnish()
        super().load_state(tensors, facts)


class SentenceSection(TextReader):
    """The section of a sentence. ``aux``: (index of the section before or -1, number of the sentence, how many), as numbers."""

    def __init__(self, plan, manifest, encoder, words, length, *, aux: bool, lr: float, weight_decay: float):
        super().__init__(plan, manifest, encoder, words, length, "section", extra=3 if aux else 0, lr=lr, weight_decay=weight_decay)
        self.aux = aux

    def condition(self, case: Case, rng: np.random.Generator) -> Condition:
        values = {"ids": self.ids(case.text["sentence"])}
        if self.aux:
            before = case.table["before"]
            values["aux"] = torch.tensor([[self.levels.index(before) if before else -1, case.table["number"], case.table["of"]]]).float()
        return Condition(values)

    @torch.no_grad()
    def label(self, lines: Sequence[str]) -> list[tuple[str, float]]:
        """Section and probability of each sentence in turn: the encoder sees all at once, the head goes from one to the next."""
        weight = self.head.weight
        pooled, out, before = self.encoder.pooled(torch.cat([self.ids(line) for line in lines]).to(weight.device)), [], -1
        for n, x in enumerate(pooled):
            aux = torch.tensor([before, n, len(lines)] if self.aux else [], dtype=x.dtype, device=x.device)
            p = self.head(torch.cat([x, aux])).softmax(0)
            before = int(p.argmax())
            out.append((self.levels[before], float(p[before])))
        return out


class SectionField(TextReader):
    """One field, read from its sections alone (or from the whole report where it has none)."""

    def __init__(self, plan, manifest, encoder, words, length, target: str, sections: tuple[str, ...], *, lr: float, weight_decay: float):
        super().__init__(plan, manifest, encoder, words, length, target, lr=lr, weight_decay=weight_decay)
        self.sections = sections

    def condition(self, case: Case, rng: np.random.Generator) -> Condition:
        whole = case.text.get(REPORT) or " ".join(t for k, t in case.text.items() if k != REPORT)
        return Condition({"ids": self.ids(passage({**case.text, REPORT: whole}, self.sections))})
