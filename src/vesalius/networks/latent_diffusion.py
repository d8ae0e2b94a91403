"""The networks of latent diffusion, as diffusers has them: an autoencoder to small latents and back, and the U-Net that cleans latents.

Rombach et al., High-resolution image synthesis with latent diffusion models, CVPR 2022, https://arxiv.org/abs/2112.10752. Only sizes are
chosen here; blocks, names of weights and config files are those of diffusers (``pip install 'vesalius[diffusion]'``), so that a folder of
weights saved by it can be read. Nothing is downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import import_module
from math import gcd
from pathlib import Path
from types import ModuleType

from torch import nn

from ..core.errors import DataError, UsageError

ATTENDING = 4  # levels of the U-Net, finest first, that have attention: at 1, 2, 4 and 8 times the latents' spacing


def autoencoder(channels: int, *, features: Sequence[int], latent: int = 4, blocks: int = 1) -> nn.Module:
    """AutoencoderKL: (B, ``channels``, *s) <-> (B, ``latent``, *s / f), f = 2^(levels - 1); ``features`` of each level, finest first."""
    n = len(features)
    return _diffusers().AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        block_out_channels=tuple(features),
        layers_per_block=blocks,
        latent_channels=latent,
        norm_num_groups=_groups(features),
    )


def encoder_of(network: nn.Module) -> nn.Sequential:
    """A copy of an autoencoder's encoder with weights of its own: (B, C, *s) -> (B, 2 latent, *s / f), means first."""
    return nn.Sequential(copy.deepcopy(network.encoder), copy.deepcopy(network.quant_conv))


def latent_unet(
    in_channels: int, out_channels: int, *, features: Sequence[int], blocks: int = 1, dropout: float = 0.0, classes: int = 0
) -> nn.Module:
    """UNet2DModel: (B, in, *s), times (B,) and, where there are ``classes``, class ids (B,) -> (B, out, *s). Sides are multiples of
    2^(levels - 1)."""
    n = len(features)
    kinds = ["Attn" if i < ATTENDING else "" for i in range(n)]
    groups = _groups(features)
    return _diffusers().UNet2DModel(
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=tuple(f"{k}DownBlock2D" if k else "ResnetDownsampleBlock2D" for k in kinds),
        up_block_types=tuple(f"{k}UpBlock2D" if k else "ResnetUpsampleBlock2D" for k in reversed(kinds)),
        block_out_channels=tuple(features),
        layers_per_block=blocks,
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=max(1, features[0] // 8),
        norm_num_groups=groups,
        attn_norm_num_groups=groups,
        dropout=dropout,
        num_class_embeds=classes or None,
    )


def attending_unet(
    in_channels: int, out_channels: int, *, told: int, features: Sequence[int], blocks: int = 1, dropout: float = 0.0, classes: int = 0
) -> nn.Module:
    """UNet2DConditionModel: as ``latent_unet``, but what it is told, tokens (B, n, ``told``), is looked at by attention and not stacked."""
    n = len(features)
    kinds = ["CrossAttn" if i < ATTENDING else "" for i in range(n)]
    return _diffusers().UNet2DConditionModel(
        in_channels=in_channels,
        out_channels=out_channels,
        down_block_types=tuple(f"{k}DownBlock2D" for k in kinds),
        up_block_types=tuple(f"{k}UpBlock2D" for k in reversed(kinds)),
        block_out_channels=tuple(features),
        layers_per_block=blocks,
        resnet_time_scale_shift="scale_shift",
        cross_attention_dim=told,
        attention_head_dim=8,
        norm_num_groups=_groups(features),
        dropout=dropout,
        num_class_embeds=classes or None,
    )


def load_autoencoder(network: nn.Module, folder: str | Path) -> None:
    """Fill ``network`` with the weights of a folder as diffusers saves an AutoencoderKL (config.json and safetensors), or that has it as
    its folder 'vae'. UsageError: no such folder. DataError: no weights in it that can be read, or an autoencoder of other sizes."""
    folder = Path(folder)
    folder = folder / "vae" if (folder / "vae").is_dir() else folder
    if not (folder / "config.json").is_file():
        fix = "give a folder that holds config.json and *.safetensors, or leave 'pretrained' empty"
        raise UsageError("there is no autoencoder here", where=folder, found="no config.json", fix=fix)
    try:
        found = _diffusers().AutoencoderKL.from_pretrained(folder, local_files_only=True, use_safetensors=True, low_cpu_mem_usage=False)
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error).splitlines()[0]
        raise DataError("the autoencoder's weights cannot be read", where=folder, found=text, fix="save them as safetensors") from None
    for size in ("in_channels", "block_out_channels", "latent_channels", "layers_per_block"):
        given, own = (tuple(v) if isinstance(v := m.config[size], (list, tuple)) else v for m in (found, network))
        if given != own:
            raise DataError(f"the autoencoder's {size} are others", where=folder, found=given, allowed=own, fix="set the sizes accordingly")
    network.load_state_dict(found.state_dict())


def _groups(features: Sequence[int]) -> int:
    """Groups of the norms: 32 where levels are wide, at least four channels a group where they can be."""
    return gcd(max(1, min(32, min(features) // 4)), *features)


def _diffusers() -> ModuleType:
    try:
        return import_module("diffusers")
    except ImportError as error:
        what = "latent diffusion is built of diffusers' networks, which are not installed"
        raise UsageError(what, found=str(error), fix="install it with pip install 'vesalius[diffusion]'") from error
