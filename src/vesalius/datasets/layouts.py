"""``open_dataset``: any folder, file or phantom name that Vesalius understands -> ``Manifest``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from ..core.errors import DataError, UsageError, nearest
from ..core.manifest import Manifest
from . import curvas, kvasir_seg, medmnist, msd, nnunet, plain, table, tdsc_abus, vesalius_toml
from .stems import ending


@dataclass(frozen=True)
class Layout:
    """One way that data lie on disk: ``missing`` says what a path lacks to be this layout ('' when nothing), ``open`` reads it."""

    name: str
    text: str
    missing: Callable[[Path], str]
    open: Callable[[Path], Manifest]


def _in_folder(file: str) -> Callable[[Path], str]:
    return lambda path: "" if (path / file).is_file() else f"no {file}"


def _missing_nnunet(path: Path) -> str:
    if not (path / "dataset.json").is_file():
        return "no dataset.json"
    return "" if nnunet.is_nnunet(path) else "no channel_names in dataset.json and no images ending in _0000"


def _missing_msd(path: Path) -> str:
    if not (path / "dataset.json").is_file():
        return "no dataset.json"
    return "" if msd.is_msd(path) else "no list 'training' in dataset.json"


def _missing_medmnist(path: Path) -> str:
    return "" if medmnist.is_medmnist(_only(path, ".npz")) else "no .npz with train_images and train_labels"


def _missing_table(path: Path) -> str:
    file = _csv(path)
    return "" if file.is_file() and file.suffix.lower() == ".csv" else "no .csv file named, no cases.csv"


def _missing_plain(path: Path) -> str:
    if path.is_file():
        return "" if ending(path) else "not an image file"
    return "" if plain.folders(path)[0] is not None else "no folder images/ and no image files"


def _only(path: Path, suffix: str) -> Path:
    """The path itself, or the only file with ``suffix`` in the folder."""
    files = sorted(path.glob(f"*{suffix}")) if path.is_dir() else []
    return files[0] if len(files) == 1 else path


def _csv(path: Path) -> Path:
    return path / "cases.csv" if path.is_dir() else path


LAYOUTS = (
    Layout("vesalius", "dataset.toml and cases.csv", _in_folder(vesalius_toml.FILE), vesalius_toml.open_toml),
    Layout("nnunet", "nnU-Net v2: dataset.json, imagesTr, labelsTr", _missing_nnunet, nnunet.open_nnunet),
    Layout("msd", "Medical Segmentation Decathlon: dataset.json with its list 'training'", _missing_msd, msd.open_msd),
    Layout("curvas", "CURVAS: a folder a case, image.nii.gz and annotation_1.nii.gz ..", curvas.missing_curvas, curvas.open_curvas),
    Layout("tdsc-abus", "TDSC-ABUS: DATA, MASK, labels.csv, bbx_labels.csv", tdsc_abus.missing_tdsc_abus, tdsc_abus.open_tdsc_abus),
    Layout("kvasir-seg", "Kvasir-SEG: images, masks (JPEG), kavsir_bboxes.json", kvasir_seg.missing_kvasir_seg, kvasir_seg.open_kvasir_seg),
    Layout("medmnist", "a MedMNIST .npz file", _missing_medmnist, lambda path: medmnist.open_medmnist(_only(path, ".npz"))),
    Layout(
        "table",
        "a CSV of paths (image, label or image:<name>, label:<rater>, ...)",
        _missing_table,
        lambda path: table.open_table(_csv(path)),
    ),
    Layout("plain", "images/ and labels/ or masks/, matched by name", _missing_plain, plain.open_plain),
)


def open_dataset(path: str | Path, *, layout: str | None = None) -> Manifest:
    """The manifest of a dataset: a folder or file in one of the ``LAYOUTS``, or 'phantom:<name>[?option=value&...]' for a built-in one.

    ``layout`` names the layout instead of recognising it. Raises DataError when nothing fits (saying what each layout lacks) or when the
    dataset contradicts itself, UsageError for an unknown layout, phantom or option. No voxels are read, except label values where the
    layout has no label table (plain, table).
    """
    if str(path).startswith("phantom:"):
        return _phantom(str(path).removeprefix("phantom:"))
    if "?" in str(path) and not Path(path).exists():
        from .views import open_view

        return open_view(str(path), lambda p: open_dataset(p, layout=layout))
    known = {one.name: one for one in LAYOUTS}
    if layout is not None and layout not in known:
        raise UsageError(f"unknown layout '{layout}'", fix=nearest(layout, known))
    path = Path(path)
    if not path.exists():
        raise DataError("there is no such file or folder", where=path, fix="phantoms are opened as 'phantom:<name>'")
    if layout is not None:
        lacks = known[layout].missing(path)
        if lacks:
            raise DataError(f"this is no '{layout}' dataset", where=path, found=lacks, allowed=known[layout].text)
        return known[layout].open(path)
    lacks = {}
    for one in LAYOUTS:
        lacks[one.name] = one.missing(path)
        if not lacks[one.name]:
            return one.open(path)
    if path.is_dir() and not any(path.iterdir()):
        raise DataError("the folder is empty", where=path)
    tried = "; ".join(f"{name}: {lack}" for name, lack in lacks.items())
    raise DataError(
        "this is no dataset in a layout that Vesalius knows", where=path, found=tried, fix="see 'vesalius datasets' for the layouts"
    )


def available() -> list[dict]:
    """What can be opened: the phantoms ({"kind": "phantom", "name", ...}) and the layouts ({"kind": "layout", "name", "text"})."""
    from . import phantoms

    return [{"kind": "phantom", **record, "open": f"phantom:{record['name']}"} for record in phantoms.describe()] + [
        {"kind": "layout", "name": one.name, "text": one.text} for one in LAYOUTS
    ]


def _phantom(address: str) -> Manifest:
    """'tumour-bed?cases=20&seed=1' -> its manifest; option values are whole numbers, decimals, true/false or words."""
    from . import phantoms

    name, _, query = address.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    if len(dict(pairs)) < len(pairs) or (query and not pairs):
        raise UsageError("a phantom's options are name=value&name=value, each once", where=f"phantom:{address}")
    return phantoms.open_phantom(name, **{key: _value(text) for key, text in pairs})


def _value(text: str) -> int | float | bool | str | tuple:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "," in text:
        return tuple(_value(part) for part in text.split(","))
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
