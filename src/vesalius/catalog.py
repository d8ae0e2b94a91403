"""The catalogue: the families' cards added up, and methods built from them. Importing and listing need no torch.

A card is pure data in ``methods/<family>/__init__.py`` (or the ``CARDS`` of ``networks`` and ``objectives``); other packages add theirs
through the entry point group ``vesalius.cards`` (each names a tuple of cards).
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import tokenize
import types
import typing
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .core.card import Card
from .core.errors import UsageError, nearest

if TYPE_CHECKING:
    from .core.manifest import Manifest
    from .core.method import Method
    from .core.plan import Plan

HOMES = (
    "vesalius.networks",
    "vesalius.objectives",
    "vesalius.methods.guided",
    "vesalius.methods.shape",
    "vesalius.methods.fewer_labels",
    "vesalius.methods.anatomy",
    "vesalius.methods.raters",
    "vesalius.methods.trust",
    "vesalius.methods.breast",
    "vesalius.methods.reports",
    "vesalius.methods.pathology",
    "vesalius.methods.promptable",
    "vesalius.methods.language",
    "vesalius.methods.generative",
    "vesalius.methods.registration",
    "vesalius.methods.networks",
)


@cache
def cards() -> dict[str, Card]:
    """All cards by slug, ours first."""
    found: dict[str, Card] = {}
    for home in HOMES:
        for card in import_module(home).CARDS:
            found[card.slug] = card
    for point in entry_points(group="vesalius.cards"):
        for card in point.load():
            found.setdefault(card.slug, card)
    return found


def names(*, family: str | None = None, dims: int | None = None, kind: str | None = None) -> list[str]:
    """Slugs, optionally of one family, dimension or kind."""
    return [
        c.slug
        for c in cards().values()
        if (family is None or c.family == family) and (dims is None or dims in c.dims) and (kind is None or c.kind == kind)
    ]


def get(slug: str) -> Card:
    if slug not in cards():
        raise UsageError(f"unknown method '{slug}'", fix=f"{nearest(slug, cards())} 'vesalius methods' lists all")
    return cards()[slug]


def load(path: str) -> Any:
    """'module:Name' -> the object."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def digest(slug: str) -> str:
    """Of the code in a card's own modules, without comments and docstrings, and of its recipe: another one where a result may be of older
    code. What the modules share with others is not in it."""
    card = get(slug)
    recipe = {role: card.recipe[role] for role in ("base", "network", "objective") if role in card.recipe}
    modules = sorted({str(path).partition(":")[0] for path in (*card.homes, *recipe.values())})
    code = "".join(stripped(Path(str(find_spec(module).origin)).read_text(encoding="utf-8")) for module in modules)
    return hashlib.sha256(f"{code} {sorted(map(str, card.recipe.items()))}".encode()).hexdigest()[:12]


def stripped(source: str) -> str:
    """The lines of Python code that are neither blank nor comments nor docstrings; the same in every version of Python."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            words = node.body[0]
            lines[words.lineno - 1 : words.end_lineno] = [""] * (words.end_lineno - words.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


# ------------------------------------------------------------------------------------------------------------------------------ options
_NOT_OPTIONS = {"self", "plan", "manifest", "parts", "network", "objective", "in_channels", "out_channels", "spatial_dims"}
_SCALARS = (int, float, str, bool)


def _keywords(fn: Any) -> dict[str, tuple[Any, Any]]:
    """Settable keyword-only parameters: name -> (type, default)."""
    hints = typing.get_type_hints(fn.__init__ if inspect.isclass(fn) else fn)
    out = {}
    for name, p in inspect.signature(fn).parameters.items():
        if p.kind is p.KEYWORD_ONLY and name not in _NOT_OPTIONS and _scalar(hints.get(name)) is not None:
            out[name] = (hints[name], p.default)
    return out


def _scalar(hint: Any) -> Any:
    """The scalar (or tuple of scalars) type behind a hint: int, int | None, Literal[...], tuple[int, ...]; None for anything else."""
    if hint in _SCALARS:
        return hint
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return hint
    if origin in (typing.Union, types.UnionType):
        kinds = [k for k in map(_scalar, (a for a in args if a is not type(None))) if k is not None]
        return kinds[0] if len(kinds) == 1 else None
    if origin is tuple and args and args[0] in _SCALARS:
        return hint
    return None


def _owners(card: Card) -> dict[str, Any]:
    """The callables whose options the card exposes: its base, and its network and objective when the recipe names them."""
    base = load(str(card.recipe.get("base", card.homes[0])))
    owners = {"base": base}
    for role in ("network", "objective"):
        if role in card.recipe:
            owners[role] = load(str(card.recipe[role]))
    return owners


def options(slug: str) -> dict[str, dict[str, Any]]:
    """What ``--set`` takes: option -> {type, default, of}."""
    card = get(slug)
    fixed = dict(card.recipe.get("options", {}))
    out: dict[str, dict[str, Any]] = {}
    for role, fn in _owners(card).items():
        for name, (hint, default) in _keywords(fn).items():
            out.setdefault(name, {"type": hint, "default": fixed.get(name, default), "of": role})
    return out


def coerce(slug: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options as given on the command line ('0.5', 'true', '1,2') -> typed values; unknown names and wrong types are refused."""
    known = options(slug)
    out = {}
    for name, value in given.items():
        if name not in known:
            fix = nearest(name, known) if known else "this method has no options"
            raise UsageError(f"{slug} has no option '{name}'", where="--set", fix=fix)
        hint = known[name]["type"]
        try:
            out[name] = _convert(value, hint)
        except (ValueError, TypeError):
            text = getattr(hint, "__name__", str(hint).replace("typing.", ""))
            raise UsageError(f"option '{name}' of {slug} has the wrong type", where="--set", found=repr(value), allowed=text) from None
    return out


def _convert(value: Any, hint: Any) -> Any:
    if value is None or (isinstance(value, str) and value.lower() == "none"):
        if type(None) in typing.get_args(hint):
            return None
        if value is None:
            raise ValueError(value)
    kind = _scalar(hint)
    if typing.get_origin(kind) is typing.Literal:
        allowed = typing.get_args(kind)
        for a in allowed:
            if str(a) == str(value):
                return a
        raise ValueError(value)
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        items = str(value).strip("()[]").split(",") if isinstance(value, str) else value
        return tuple(_convert(i.strip() if isinstance(i, str) else i, inner) for i in items if str(i).strip())
    if kind is bool:
        text = str(value).lower()
        if text not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ValueError(value)
        return text in ("true", "1", "yes", "on")
    if kind is int and isinstance(value, float) and value != int(value):
        raise ValueError(value)
    return kind(value)


def build(
    slug: str,
    plan: Plan,
    manifest: Manifest,
    parts: Mapping[str, Method] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Method:
    """The method of a card, ready to fit. ``options`` are checked against the signature (unknown ones refused, strings converted)."""
    card = get(slug)
    if manifest.dims and card.dims and manifest.dims not in card.dims:
        raise UsageError(
            f"{slug} works in {' or '.join(f'{d}D' for d in card.dims)}, the data set '{manifest.name}' is {manifest.dims}D",
            fix="'vesalius methods' shows the dimensions of each method",
        )
    known = globals()["options"](slug)
    given = {**dict(card.recipe.get("options", {})), **coerce(slug, options or {})}
    owners = _owners(card)
    base = {k: v for k, v in given.items() if known[k]["of"] == "base"}
    if "network" in owners:
        extra = {k: v for k, v in given.items() if known[k]["of"] == "network"}
        base["network"] = _partial(owners["network"], extra)
    if "objective" in owners:
        extra = {k: v for k, v in given.items() if known[k]["of"] == "objective"}
        base["objective"] = _partial(owners["objective"], extra)
    return owners["base"](plan, manifest, parts=parts or {}, **base)


def _partial(fn: Any, fixed: Mapping[str, Any]) -> Any:
    from functools import partial

    return partial(fn, **fixed) if fixed else fn
