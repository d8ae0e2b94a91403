"""Any SAM or SAM 2 checkpoint in the transformers library's format (SAM, MedSAM, SlimSAM; SAM 2 and 2.1, MedSAM2), from a folder or by
hub id, on our own modules.

A checkpoint is ``config.json`` and ``model.safetensors``; ``transformers`` itself is not needed, and nothing is unpickled. Kirillov et al.,
Segment Anything, ICCV 2023, https://arxiv.org/abs/2304.02643; Ravi et al., SAM 2, https://arxiv.org/abs/2408.00714. What SAM 2's memory of
other frames does is in ``methods.sam_video``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import interpolate, pad

from ..core.errors import DataError, UsageError
from ..core.manifest import Manifest
from ..core.method import Method
from ..core.plan import Plan
from ..core.prompt import Candidates, Turn
from ..networks import sam2, sam2_video, sam_vit
from ..networks.blocks.pretrained import read_tensors
from ..networks.sam import Sam, together
from ..networks.sam2 import Maps, Sam2
from ..networks.sam2_video import Sam2Video
from ..networks.sam_vit import SamViT
from .sam2d import Sam2D, as_photograph

MEAN, SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the photographs that SAM was trained with, from 0 to 1


class SamCheckpoint(Sam2D):
    """``checkpoint``: a folder, or a hub id ('facebook/sam-vit-base', 'facebook/sam2.1-hiera-tiny'), whose files then come into the hub's
    cache. One click without a box or mask gets the three masks for prompts that leave doubt, ranked by the model itself."""

    def __init__(self, plan: Plan, manifest: Manifest, *, checkpoint: str, parts: Mapping[str, Method] | None = None):
        config, weights = _files(checkpoint)
        facts = json.loads(config.read_text())
        kind = facts.get("model_type")
        if kind not in KINDS:
            fix = "SAM, MedSAM and SlimSAM, SAM 2 and MedSAM2 are of these; SAM HQ and SAM 3 are other networks"
            raise DataError("this is no SAM model", where=config, found=kind, allowed=f"model_type {', '.join(KINDS)}", fix=fix)
        build, ours = KINDS[kind]
        network = build(facts)
        super().__init__(plan, manifest, parts=parts, pretrained=False, side=network.size[0])
        self.network, self.stretched = network, isinstance(network, Sam2)
        _fill(network, ours(read_tensors(weights)), weights)

    def embed(self, image: Tensor, condition: object = None) -> tuple[Tensor | Maps, tuple[int, ...]]:
        """As each was trained: SAM sees an image in the corner of a square, the rest of the mean colour, SAM 2 an image stretched to it."""
        return self.mapped(image, self.network.embed), tuple(image.shape[2:])

    def mapped(self, image: Tensor, look: Callable[[Tensor], Tensor | Maps]) -> Tensor | Maps:
        """What ``look`` makes of the image as the network is to see it."""
        mean, sd = (image.new_tensor(x).view(1, 3, 1, 1) for x in (MEAN, SD))
        seen, (h, w) = (as_photograph(image) - mean) / sd, image.shape[2:]
        seen = resized(seen, self.side) if self.stretched else pad(seen, (0, self.side - w, 0, self.side - h))
        with self.quickly(image):
            features = look(seen)
        return features.float() if isinstance(features, Tensor) else tuple(f.float() for f in features)

    def decode(self, embedding: tuple[Tensor | Maps, tuple[int, ...]], history: Sequence[Turn]) -> Candidates:
        if not self.stretched:
            return super().decode(embedding, history)
        features, size = embedding
        answer = self.candidates(features, [_stretched(turn, size, self.side) for turn in history])
        return Candidates(interpolate(answer.logits, size, mode="bilinear", align_corners=False), answer.quality)

    def candidates(self, features: Tensor | Maps, history: Sequence[Turn]) -> Candidates:
        """Masks of a quarter of the encoder's side, as SAM gives them, at the side itself."""
        given = together(history)
        doubt = given.points.shape[1] == 1 and given.boxes is None and given.masks is None
        answer = self.network.decode(features, history, several=doubt)
        return Candidates(resized(answer.logits, self.side), answer.quality)


def resized(image: Tensor, side: int) -> Tensor:
    """(B, C, h, w) -> (B, C, side, side)."""
    return interpolate(image, (side, side), mode="bilinear", align_corners=False)


def _stretched(turn: Turn, size: Sequence[int], side: int) -> Turn:
    """From pixels of an image of ``size`` to those of the square."""
    asked, scale = turn.prompts, turn.prompts.points.new_tensor([side / n for n in size])
    moved = lambda places: (places + 0.5) * scale - 0.5
    boxes, masks, logits = asked.boxes, asked.masks, turn.logits
    asked = replace(
        asked,
        points=moved(asked.points),
        boxes=None if boxes is None else moved(boxes),
        masks=None if masks is None else resized(masks, side),
    )
    return Turn(asked, None if logits is None else resized(logits, side))


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


def _sam(config: Mapping[str, Any]) -> Sam:
    """What a config leaves out is ViT-B's."""
    of = config.get("vision_config") or {}
    side, patch, dim, out = of.get("image_size", 1024), of.get("patch_size", 16), of.get("hidden_size", 768), of.get("output_channels", 256)
    encoder = SamViT(
        side=side,
        patch=patch,
        dim=dim,
        depth=of.get("num_hidden_layers", 12),
        heads=of.get("num_attention_heads", 12),
        hidden=of.get("mlp_dim") or int(dim * of.get("mlp_ratio", 4.0)),
        window=of.get("window_size", 14),
        whole=tuple(of.get("global_attn_indexes", (2, 5, 8, 11))),
        out=out,
    )
    return Sam(encoder, size=(side,) * 2, grid=(side // patch,) * 2, dim=out)


def _sam2(config: Mapping[str, Any]) -> Sam2:
    return Sam2(**_image_facts(config))


def _sam2_video(config: Mapping[str, Any]) -> Sam2Video:
    return Sam2Video(
        **_image_facts(config),
        memory=config.get("memory_encoder_output_channels", 64),
        frames=config.get("num_maskmem", 7),
        pointers=config.get("max_object_pointers_in_encoder", 16),
        layers=config.get("memory_attention_num_layers", 4),
        hidden=config.get("memory_attention_feed_forward_hidden_size", 2048),
        timed=config.get("enable_temporal_pos_encoding_for_object_pointers", True),
        absence=config.get("enable_occlusion_spatial_embedding", True),
        scale=config.get("sigmoid_scale_for_mem_enc", 20.0),
        bias=config.get("sigmoid_bias_for_mem_enc", -10.0),
    )


def _image_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config leaves out is the tiny model's."""
    vision, prompts, masks = (config.get(f"{k}_config") or {} for k in ("vision", "prompt_encoder", "mask_decoder"))
    of = vision.get("backbone_config") or {}
    side = prompts.get("image_size", 1024)
    firm = masks.get("dynamic_multimask_stability_delta", 0.05), masks.get("dynamic_multimask_stability_thresh", 0.98)
    return dict(
        side=side if isinstance(side, int) else side[0],
        dim=vision.get("fpn_hidden_size", 256),
        joined=vision.get("fpn_top_down_levels") or (2, 3),
        firm=firm if masks.get("dynamic_multimask_via_stability", True) else None,
        dims=of.get("embed_dim_per_stage") or (96, 192, 384, 768),
        depths=of.get("blocks_per_stage") or (1, 2, 7, 2),
        heads=of.get("num_attention_heads_per_stage") or (1, 2, 4, 8),
        windows=of.get("window_size_per_stage") or (8, 4, 14, 7),
        whole=of.get("global_attention_blocks") or (5, 7, 9),
        background=of.get("window_positional_embedding_background_size") or (7, 7),
        ratio=of.get("mlp_ratio", 4.0),
    )


KINDS = {  # model_type -> the network of a config, and its tensors by our names
    "sam": (_sam, sam_vit.from_transformers),
    "sam2": (_sam2, sam2.from_transformers),
    "sam2_video": (_sam2_video, sam2_video.from_transformers),
}


def _fill(network: Sam, found: Mapping[str, Tensor], where: Path) -> None:
    own = network.state_dict()
    wrong = sorted(set(own) ^ set(found)) or [k for k in own if own[k].shape != found[k].shape]
    if wrong:
        raise DataError(f"{len(wrong)} tensors are missing, of no place or of another shape", where=where, found=", ".join(wrong[:3]))
    network.load_state_dict({k: v.float() for k, v in found.items()})
