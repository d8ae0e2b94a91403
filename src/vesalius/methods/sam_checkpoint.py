"""Any SAM checkpoint in the transformers library's format (SAM, MedSAM, SlimSAM), from a folder or by hub id, on our own modules.

A checkpoint is ``config.json`` and ``model.safetensors``; ``transformers`` itself is not needed, and nothing is unpickled. Kirillov et al.,
Segment Anything, ICCV 2023, https://arxiv.org/abs/2304.02643. SAM 2 and its kin have another encoder and a memory, and are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..core.errors import DataError, UsageError
from ..core.manifest import Manifest
from ..core.method import Method
from ..core.plan import Plan
from ..core.prompt import Candidates, Turn
from ..networks.blocks.pretrained import read_tensors
from ..networks.sam import Sam, together
from ..networks.sam_vit import SamViT, from_transformers
from .sam2d import Sam2D, as_photograph

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the photographs that SAM was trained with, from 0 to 1


class SamCheckpoint(Sam2D):
    """``checkpoint``: a folder, or a hub id ('facebook/sam-vit-base'), whose files then come into the hub's cache. One click without a box
    or mask gets the three masks for prompts that leave doubt, ranked by the model itself."""

    def __init__(self, plan: Plan, manifest: Manifest, *, checkpoint: str, parts: Mapping[str, Method] | None = None):
        config, weights = _files(checkpoint)
        facts = _facts(json.loads(config.read_text()), config)
        super().__init__(plan, manifest, parts=parts, pretrained=False, side=facts["side"])
        grid = facts["side"] // facts["patch"]
        self.network = Sam(SamViT(**facts), size=(self.side,) * 2, grid=(grid,) * 2, dim=facts["out"])
        _fill(self.network, weights)

    def embed(self, image: Tensor, condition: object = None) -> tuple[Tensor, tuple[int, ...]]:
        """As of any Sam2D; what lies beyond the image is of the mean colour, as SAM was trained."""
        mean, sd = (image.new_tensor(x).view(1, 3, 1, 1) for x in (MEAN, SD))
        size = tuple(image.shape[2:])
        seen = pad((as_photograph(image) - mean) / sd, (0, self.side - size[1], 0, self.side - size[0]))
        return self.network.embed(seen), size

    def candidates(self, features: Tensor, history: Sequence[Turn]) -> Candidates:
        """Masks of a quarter of the encoder's side, as SAM gives them, at the side itself."""
        given = together(history)
        doubt = given.points.shape[1] == 1 and given.boxes is None and given.masks is None
        answer = self.network.decode(features, history, several=doubt)
        return Candidates(interpolate(answer.logits, (self.side,) * 2, mode="bilinear", align_corners=False), answer.quality)


def _files(checkpoint: str) -> tuple[Path, Path]:
    """config.json and model.safetensors. Raises UsageError where they cannot be had."""
    names, folder = ("config.json", "model.safetensors"), Path(checkpoint)
    if folder.exists():
        missing = [n for n in names if not (folder / n).is_file()]
        if missing:
            raise UsageError("this is no SAM checkpoint of the transformers library", where=folder, found=f"no {missing[0]}", allowed=names)
        return folder / names[0], folder / names[1]
    try:
        from huggingface_hub import hf_hub_download

        return tuple(Path(hf_hub_download(checkpoint, n)) for n in names)
    except Exception as error:  # noqa: BLE001 - no package, no network, no such id: one sentence for all
        fix = "give the folder that holds config.json and model.safetensors, or a hub id where there is a network"
        raise UsageError("the checkpoint cannot be had", found=f"{checkpoint}: {type(error).__name__}", fix=fix) from None


def _facts(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """The encoder's sizes; what a config leaves out is ViT-B's. Raises DataError for a model of another kind."""
    if config.get("model_type") != "sam":
        fix = "SAM, MedSAM and SlimSAM have it; SAM 2 and SAM HQ have other networks"
        raise DataError("this is no SAM model", where=where, found=config.get("model_type"), allowed="model_type sam", fix=fix)
    of = config.get("vision_config") or {}
    dim = of.get("hidden_size", 768)
    return {
        "side": of.get("image_size", 1024),
        "patch": of.get("patch_size", 16),
        "dim": dim,
        "depth": of.get("num_hidden_layers", 12),
        "heads": of.get("num_attention_heads", 12),
        "hidden": of.get("mlp_dim") or int(dim * of.get("mlp_ratio", 4.0)),
        "window": of.get("window_size", 14),
        "whole": tuple(of.get("global_attn_indexes", (2, 5, 8, 11))),
        "out": of.get("output_channels", 256),
    }


def _fill(network: Sam, weights: Path) -> None:
    found = {k: v.float() for k, v in from_transformers(read_tensors(weights)).items()}
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(found)) or [k for k in own if own[k].shape != found[k].shape]
    if wrong:
        raise DataError(f"{len(wrong)} tensors are missing, of no place or of another shape", where=weights, found=", ".join(wrong[:3]))
    network.load_state_dict(found)
