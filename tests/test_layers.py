"""The layer table of the design: who may import whom."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[1] / "src" / "vesalius"
ALLOWED = {
    "core": {"core"},
    "ops": {"ops", "core"},
    "io": {"io", "core", "ops"},
    "networks": {"networks", "core", "ops"},
    "objectives": {"objectives", "core", "ops"},
    "inferers": {"inferers", "core", "ops"},
    "metrics": {"metrics", "core", "ops"},
    "datasets": {"datasets", "core", "ops", "io"},
    "methods": {"methods", "core", "ops", "networks", "objectives", "inferers", "metrics"},
    "engine": {"engine", "core", "ops", "io", "datasets", "metrics", "inferers", "catalog", "report", "methods.learned", "__init__"},
    "report": {"report", "core", "catalog"},
    "serve": {"serve", "engine", "report", "catalog", "core", "io", "datasets", "ops"},
    "catalog": {"catalog", "core"},
    "cli": {"cli", "engine", "serve", "report", "catalog", "core", "io", "datasets"},
}


def imports(path: Path) -> set[str]:
    """Dotted names inside the package that a file imports, e.g. 'core.case'."""
    package = ["vesalius", *path.relative_to(SRC).parts[:-1]]
    out = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = [*base, *(node.module.split(".") if node.module else [])]
            if name[:1] == ["vesalius"]:
                out.add(".".join(name[1:]) if len(name) > 1 else ",".join(a.name for a in node.names))
        elif isinstance(node, ast.Import):
            out |= {a.name.removeprefix("vesalius.") for a in node.names if a.name.startswith("vesalius.")}
    return {part for name in out for part in name.split(",")}


BASES = {"methods", *(f"methods.{p.stem}" for p in (SRC / "methods").glob("*.py"))}  # beside the families: what several build on
FILES = sorted(p for p in SRC.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SRC)))
def test_layer(path: Path):
    parts = path.relative_to(SRC).with_suffix("").parts
    if parts == ("__init__",):
        return
    layer = parts[0]
    for name in imports(path):
        top = name.split(".")[0]
        if top == "__version__":
            continue
        if layer == "engine" and top == "methods":
            known = name in ("methods.learned", "methods.prompted")
            assert known, f"{path}: the engine knows methods only through the catalogue and their bases ({name})"
            continue
        assert top in ALLOWED[layer], f"{path} ({layer}) imports {name}"
        if layer == "methods" and top == "methods":
            mine = ".".join(parts[:-1])
            own_family = name == mine or name in BASES
            assert own_family, f"{path}: no method imports another method ({name})"


def test_core_needs_numpy_only():
    """core imports numpy (and torch where a type needs it), nothing else outside the standard library."""
    import sys

    for path in (SRC / "core").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level and node.module else []
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or top in ("numpy", "torch"), f"{path} imports {name}"


def test_nothing_unpickles():
    """No pickle, no torch.load without weights_only=True, no allow_pickle=True, no eval."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                assert not {"pickle", "cPickle", "dill", "joblib", "shelve"} & set(names), path
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert name not in ("eval", "exec"), f"{path}:{node.lineno}"
                assert keywords.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
                if name == "torch.load":
                    assert keywords.get("weights_only") == "True", f"{path}:{node.lineno}"
