"""A SAM checkpoint in the transformers library's format: loads from its folder, answers as our own modules do, and says what it is not."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from tests.networks import test_sam2 as two
from tests.networks import test_sam2_video as video
from tests.networks.test_sam_vit import TINY, as_transformers, tiny
from vesalius.core.case import Case, Image
from vesalius.core.errors import DataError, UsageError
from vesalius.core.geometry import Geometry
from vesalius.core.plan import Plan
from vesalius.core.prompt import Asked, Box, Turn
from vesalius.datasets import open_dataset
from vesalius.engine.interact import Session
from vesalius.methods.promptable.sam4mis import ZeroShot
from vesalius.methods.sam_checkpoint import MEAN, SD, SamCheckpoint

CONFIG = {
    "model_type": "sam",
    "vision_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "mlp_dim": 48,
        "window_size": 3,
        "global_attn_indexes": [1],
        "output_channels": 32,
    },
}
CONFIG_2 = {
    "model_type": "sam2",
    "vision_config": {
        "backbone_config": {
            "embed_dim_per_stage": [8, 16, 32, 64],
            "blocks_per_stage": [1, 2, 3, 1],
            "num_attention_heads_per_stage": [1, 2, 4, 8],
            "window_size_per_stage": [8, 4, 14, 7],
            "global_attention_blocks": [4],
        },
        "fpn_hidden_size": 32,
    },
    "prompt_encoder_config": {"image_size": 128},
}


def plan() -> Plan:
    return Plan(dims=2, channels=("RGB",), in_channels=3, classes=("background", "lesion"))


def saved(folder, config, tensors):
    """A checkpoint as the library writes it."""
    folder.mkdir(exist_ok=True)
    save_file({k: v.clone() for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def of_sam(folder):
    return saved(folder, CONFIG, as_transformers(tiny().state_dict()))


def of_sam2(folder):
    return saved(folder, CONFIG_2, two.with_memory(two.as_transformers(two.tiny().state_dict())))


def of_sam2_video(folder):
    memory = {"memory_encoder_output_channels": 16, "num_maskmem": 3, "max_object_pointers_in_encoder": 3}
    memory |= {"memory_attention_num_layers": 2, "memory_attention_feed_forward_hidden_size": 48}
    return saved(folder, {**CONFIG_2, **memory, "model_type": "sam2_video"}, two.as_transformers(video.tiny().state_dict()))


@pytest.fixture
def folder(tmp_path):
    return of_sam(tmp_path / "sam")


@pytest.fixture
def folder_2(tmp_path):
    return of_sam2(tmp_path / "sam2")


@torch.no_grad()
def test_it_answers_as_the_network_it_was_saved_from(folder):
    method, net = SamCheckpoint(plan(), open_dataset("phantom:polyp"), checkpoint=str(folder)).eval(), tiny()
    assert method.side == TINY["side"] and method.plan.grid.longest == 64
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(1, 3, 64, 64)
    seen[:, :, :48] = (image - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(SD).view(1, 3, 1, 1)
    features, size = method.embed(image)
    assert size == (48, 64) and torch.allclose(features, net.embed(seen), atol=1e-5)
    none = torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.long)
    box = Turn(Asked(*none, torch.tensor([[[4.0, 5.0], [30.0, 40.0]]])))
    answer, own = method.decode((features, size), [box]), net.decode(features, [box])
    assert answer.logits.shape == (1, 1, 48, 64) and torch.equal(answer.quality, own.quality)
    fine = interpolate(own.logits, (64, 64), mode="bilinear", align_corners=False)
    assert torch.allclose(answer.logits, fine[:, :, :48], atol=1e-5)
    click = Turn(Asked(torch.tensor([[[20.0, 20.0]]]), torch.ones(1, 1, dtype=torch.long)))
    assert method.decode((features, size), [click]).logits.shape == (1, 3, 48, 64), "one click leaves room for doubt"


@torch.no_grad()
def test_sam2_sees_the_image_stretched_to_a_square_and_so_its_prompts(folder_2):
    method, net = SamCheckpoint(plan(), open_dataset("phantom:polyp"), checkpoint=str(folder_2)).eval(), two.tiny()
    assert method.plan.grid.longest == 128
    image = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    square = interpolate(image, (128, 128), mode="bilinear", align_corners=False)
    maps = net.embed((square - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(SD).view(1, 3, 1, 1))
    features, size = method.embed(image)
    assert size == (64, 128) and all(torch.allclose(a, b, atol=1e-5) for a, b in zip(features, maps, strict=True))
    none = torch.zeros(1, 0, 2), torch.zeros(1, 0, dtype=torch.long)
    asked = Turn(Asked(*none, torch.tensor([[[4.0, 5.0], [30.0, 40.0]]])))
    moved = Turn(Asked(*none, torch.tensor([[[8.5, 5.0], [60.5, 40.0]]])))  # row 4 of 64 has its centre at 4.5 of 64, 9 of 128
    answer, own = method.decode((features, size), [asked]), net.decode(maps, [moved])
    assert torch.allclose(answer.quality, own.quality, atol=1e-5) and answer.logits.shape == (1, 1, 64, 128)
    square = interpolate(own.logits, (128, 128), mode="bilinear", align_corners=False)
    assert torch.allclose(answer.logits, square.unflatten(2, (64, 2)).mean(3), atol=1e-4)
    again = Turn(Asked(torch.tensor([[[20.0, 20.0]]]), torch.ones(1, 1, dtype=torch.long)), answer.logits)
    assert method.decode((features, size), [asked, again]).logits.shape == (1, 1, 64, 128)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["folder", "folder_2"])
def test_bfloat16_embeds_nearly_the_same(kind, request, monkeypatch):
    monkeypatch.setattr("vesalius.methods.sam2d.computes", lambda precision: True)
    where, data = str(request.getfixturevalue(kind)), open_dataset("phantom:polyp")
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    exact, quick = (SamCheckpoint(plan().derive(precision=p), data, checkpoint=where).eval().embed(image)[0] for p in ("32", "auto"))
    for a, b in zip(*((x,) if torch.is_tensor(x) else x for x in (exact, quick)), strict=True):
        assert b.dtype == torch.float32 and not torch.equal(a, b) and (a - b).abs().max() < 0.1 * a.abs().max()


@pytest.mark.parametrize("kind", ["folder", "folder_2"])
def test_the_protocol_asks_it_in_world_coordinates(kind, request):
    manifest = open_dataset("phantom:polyp")
    method = ZeroShot(plan(), manifest, checkpoint=str(request.getfixturevalue(kind)))
    case = Case(
        "c", images={"RGB": Image(np.random.default_rng(0).integers(0, 255, (3, 90, 120)).astype(np.uint8), Geometry.of((90, 120), 0.5))}
    )
    answer = Session(method, case, method.plan).ask([Box((5.0, 5.0), (20.0, 30.0))])
    assert answer.probability.geometry == case.geometry and np.isfinite(answer.probability.data).all()


def test_what_is_no_such_checkpoint_is_said(folder, tmp_path_factory):
    manifest = open_dataset("phantom:polyp")
    with pytest.raises(UsageError, match="cannot be had"):
        SamCheckpoint(plan(), manifest, checkpoint="no such folder/or id/at all")
    with pytest.raises(UsageError, match="no config.json"):
        SamCheckpoint(plan(), manifest, checkpoint=str(tmp_path_factory.mktemp("empty")))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "vision_config": {**CONFIG["vision_config"], "num_hidden_layers": 3}}))
    with pytest.raises(DataError, match="missing"):
        SamCheckpoint(plan(), manifest, checkpoint=str(folder))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "model_type": "sam_hq"}))
    with pytest.raises(DataError, match="no SAM model"):
        SamCheckpoint(plan(), manifest, checkpoint=str(folder))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(UsageError, match="not a safetensors"):
        SamCheckpoint(plan(), manifest, checkpoint=str(folder))
