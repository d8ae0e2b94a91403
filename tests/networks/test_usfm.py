"""USFM's network: distances by brute force, tables of other sizes, BEiT and UPerNet as others build them, and where queries look."""

import math
from itertools import product

import pytest
import torch
from safetensors.torch import save_file

from vesalius.core.errors import DataError, GeometryError, UsageError
from vesalius.networks.blocks.beit import adopt, distances, relative_index, resized_table
from vesalius.networks.usfm import USFM, Asking, AttentionToMask

SMALL = {"spatial_dims": 2, "window": (64, 64), "patch": 16, "dim": 24, "depth": 4, "heads": 2}


def small(channels: int = 1, out: int = 2, **options) -> USFM:
    torch.manual_seed(0)
    return USFM(channels, out, **{**SMALL, "width": 24 if options.get("head") == "segvit" else 8, **options})


def randomised(net: torch.nn.Module) -> torch.nn.Module:
    """Every parameter and running statistic away from its special start."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
        for m in net.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
    return net.eval()


# ------------------------------------------------------------------------------------------------------------------------------ distances
def test_a_pairs_row_of_the_table_is_its_distance():
    grid = (3, 2)
    index, at = relative_index(grid), list(product(range(3), range(2)))
    rows: dict[int, tuple] = {}
    for (i, a), (j, b) in product(enumerate(at), enumerate(at)):
        apart = (a[0] - b[0], a[1] - b[1])
        assert rows.setdefault(int(index[1 + i, 1 + j]), apart) == apart
    assert len(rows) == distances(grid) == 15 and set(rows) == set(range(15))
    assert (index[0, 1:] == 15).all() and (index[1:, 0] == 16).all() and index[0, 0] == 17


def test_a_table_for_its_own_grid_is_itself():
    table = torch.randn(distances((5, 4)) + 3, 2)
    assert resized_table(table, (5, 4), (5, 4)) is table


def test_a_table_of_another_grid_keeps_its_middle_its_symmetry_and_the_class_tokens_rows():
    own, grid = (4, 6), (8, 5)
    rows, columns = torch.arange(-3.0, 4), torch.arange(-5.0, 6)
    near = -(rows[:, None] ** 2) - columns[None].abs()
    table = torch.cat([near.flatten()[:, None], torch.tensor([[7.0], [8.0], [9.0]])])
    other = resized_table(table, own, grid)
    assert other.shape == (distances(grid) + 3, 1) and torch.equal(other[-3:], table[-3:])
    square = other[:-3].view(15, 9)
    assert square[7, 4] == 0 == square.max()
    torch.testing.assert_close(square, square.flip(0))
    torch.testing.assert_close(square, square.flip(1))


def test_attention_knows_distances_and_no_places():
    """Without a class token's pull, an image moved by whole tokens on a torus of equal tables would move its tokens; here: a table of
    zeros makes attention blind to order, one that is not does not."""
    net = randomised(small())
    x = torch.randn(1, 1, 64, 64)
    moved = x.roll(16, 2)
    with torch.no_grad():
        for block in net.backbone.blocks:
            block.attn.relative_position_bias_table.zero_()
        a, b = net.backbone(x)[-1], net.backbone(moved)[-1]
        torch.testing.assert_close(a.roll(1, 2), b, atol=1e-4, rtol=1e-4)
        for block in net.backbone.blocks:
            block.attn.relative_position_bias_table.normal_()
        assert not torch.allclose(net.backbone(x)[-1].roll(1, 2), net.backbone(moved)[-1], atol=1e-2)


# ------------------------------------------------------------------------------------------------------------------------ as others have it
def test_the_transformer_has_the_size_of_vit_b():
    """By hand: embedding, class token, and 12 blocks of attention, perceptron, norms, scales and a table of 63 x 63 + 3 distances."""
    d = 768
    with torch.device("meta"):
        net = USFM(3, 2, spatial_dims=2)
    block = 3 * d * d + 2 * d + d * d + d + (2 * 4 * d * d + 4 * d + d) + 4 * d + 2 * d + (63 * 63 + 3) * 12
    assert sum(p.numel() for p in net.backbone.parameters()) == 16 * 16 * 3 * d + d + d + 12 * block
    assert abs(sum(p.numel() for p in net.backbone.parameters()) / 86e6 - 1) < 0.02
    assert net.backbone.levels == (3, 5, 7, 11) and net.multiple == (32, 32)
    with torch.device("meta"):
        assert USFM(3, 2, spatial_dims=2, head="segvit").backbone.levels == (5, 7, 11)


def from_transformers(state: dict) -> dict:
    """BeitForSemanticSegmentation's names -> ours."""
    bare = {k.removeprefix("beit."): v for k, v in state.items()}
    out = {
        "backbone.cls_token": bare["embeddings.cls_token"],
        **{f"backbone.patch_embed.proj.{p}": bare[f"embeddings.patch_embeddings.projection.{p}"] for p in ("weight", "bias")},
    }
    names = {
        "layernorm_before.weight": "norm1.weight",
        "layernorm_before.bias": "norm1.bias",
        "layernorm_after.weight": "norm2.weight",
        "layernorm_after.bias": "norm2.bias",
        "attention.attention.query.bias": "attn.q_bias",
        "attention.attention.value.bias": "attn.v_bias",
        "attention.attention.relative_position_bias.relative_position_bias_table": "attn.relative_position_bias_table",
        "attention.output.dense.weight": "attn.proj.weight",
        "attention.output.dense.bias": "attn.proj.bias",
        "intermediate.dense.weight": "mlp.fc1.weight",
        "intermediate.dense.bias": "mlp.fc1.bias",
        "output.dense.weight": "mlp.fc2.weight",
        "output.dense.bias": "mlp.fc2.bias",
        "lambda_1": "gamma_1",
        "lambda_2": "gamma_2",
    }
    for i in range(sum(k.endswith("lambda_1") for k in bare)):
        head = f"encoder.layer.{i}."
        out |= {f"backbone.blocks.{i}.{mine}": bare[head + theirs] for theirs, mine in names.items()}
        qkv = [bare[f"{head}attention.attention.{n}.weight"] for n in ("query", "key", "value")]
        out[f"backbone.blocks.{i}.attn.qkv.weight"] = torch.cat(qkv)
    moved = {"fpn1.": "head.scale.0.", "fpn2.": "head.scale.1.", "auxiliary_head.convs.0.": "head.auxiliary.0."}
    moved |= {"auxiliary_head.classifier.": "head.auxiliary.2.", "decode_head.classifier.": "head.classify.1."}
    moved |= {"decode_head.bottleneck.": "head.joined.", "decode_head.fpn_bottleneck.": "head.fused."}
    for i in range(3):
        moved |= {f"decode_head.lateral_convs.{i}.": f"head.lateral.{i}.", f"decode_head.fpn_convs.{i}.": f"head.smooth.{i}."}
    moved |= {f"decode_head.psp_modules.{i}.1.": f"head.pooled.{i}." for i in range(4)}
    for theirs, mine in moved.items():
        for k, v in bare.items():
            if k.startswith(theirs):
                out[mine + k.removeprefix(theirs).replace("conv.", "0.").replace("bn.", "1.")] = v
    return out


def test_parity_with_beit_and_upernet_of_transformers():
    """The same weights, the same logits; and at the published size the same number of parameters."""
    beit = pytest.importorskip("transformers", reason="only a check against another implementation")
    torch.manual_seed(0)
    common = dict(use_relative_position_bias=True, use_absolute_position_embeddings=False, use_mask_token=False, layer_scale_init_value=0.1)
    config = dict(hidden_size=24, num_hidden_layers=5, num_attention_heads=2, intermediate_size=96, image_size=64, patch_size=16)
    config |= dict(out_indices=[2, 3, 4, 5], auxiliary_channels=24, num_labels=3, layer_norm_eps=1e-6)
    theirs = randomised(beit.BeitForSemanticSegmentation(beit.BeitConfig(**common, **config)))
    mine = small(3, 3, width=24, levels=(0, 1, 2, 3))
    state = from_transformers(theirs.state_dict())
    mine.load_state_dict({k: v for k, v in state.items() if not k.startswith("backbone.blocks.4.")})  # theirs has one block to spare
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = torch.nn.functional.interpolate(theirs(x).logits, (64, 64), mode="bilinear")
        torch.testing.assert_close(mine.eval()(x), wanted, atol=1e-4, rtol=1e-4)
    full = dict(image_size=512, patch_size=16, num_labels=2, out_indices=[4, 6, 8, 12], auxiliary_channels=256, auxiliary_num_convs=1)
    with torch.device("meta"):
        theirs = beit.BeitForSemanticSegmentation(beit.BeitConfig(**common, **full))
        ours = USFM(3, 2, spatial_dims=2)
    final_norm = 2 * 768 if hasattr(theirs.beit, "layernorm") and not isinstance(theirs.beit.layernorm, torch.nn.Identity) else 0
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) - final_norm


# -------------------------------------------------------------------------------------------------------------------------------- the heads
@pytest.mark.parametrize("head", ["upernet", "segvit"])
@pytest.mark.parametrize("patch", [8, 16, 32])
def test_logits_at_the_images_size(head, patch):
    net = small(3, 4, head=head, patch=patch).eval()
    for size in ((64, 64), (96, 32)):  # and one whose positions are interpolated
        assert net(torch.randn(2, 3, *size)).shape == (2, 4, *size)
    with pytest.raises(GeometryError, match="USFM"):
        net(torch.randn(1, 3, 50, 64))


def test_every_level_has_its_stride():
    for patch in (4, 8, 16, 32):
        net = small(patch=patch, window=(64, 64))
        tokens = torch.randn(2, 24, 64 // patch, 64 // patch)
        assert [64 // scale(tokens).shape[-1] for scale in net.head.scale] == [4, 8, 16, 32]


def test_masks_are_where_the_queries_look():
    """With one layer of one head, the mask is query x key / sqrt(width); levels add up; the deepest is asked first."""
    torch.manual_seed(0)
    head = AttentionToMask(6, 3, 2, 8, 1, 1, 0.0).eval()
    levels = [torch.randn(2, 6, 4, 5) for _ in range(2)]
    first, asked = [], []
    for stage in head.stages:
        stage[0].query.register_forward_hook(lambda _m, _i, q: first.append(q))
        stage[0].key.register_forward_hook(lambda _m, i, k: asked.append(k))
    (_, after), (_, before) = head(levels)
    looked = [(q @ k.transpose(1, 2) / math.sqrt(8)).view(2, 3, 4, 5) for q, k in zip(first, asked, strict=True)]
    torch.testing.assert_close(before, looked[0])
    torch.testing.assert_close(after, looked[0] + looked[1])
    torch.testing.assert_close(asked[0], head.stages[0][0].key(head.enter[0](levels[1].flatten(2).transpose(1, 2))))


def test_scores_are_read_as_logarithms():
    head = AttentionToMask(6, 3, 1, 8, 1, 1, 0.0)
    classes, masks = torch.randn(2, 3, 4), 2 * torch.randn(2, 3, 8, 8)
    share = classes.softmax(-1)[..., :3]
    score = sum(share[:, q, :, None, None] * masks[:, q, None].sigmoid() for q in range(3))
    read = head.read((classes, masks), torch.zeros(2, 1, 8, 8))
    torch.testing.assert_close(read.softmax(1), score / score.sum(1, keepdim=True))
    assert torch.equal(read.argmax(1), score.argmax(1))


def test_queries_come_back_normalised_and_attention_sees_all_tokens():
    torch.manual_seed(0)
    layer = Asking(8, 2, 0.0).eval()
    queries, looked = layer(torch.randn(2, 3, 8), torch.randn(2, 7, 8))
    assert looked.shape == (2, 3, 7)
    torch.testing.assert_close(queries.mean(-1), torch.zeros(2, 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"spatial_dims": 3},
        {"patch": 12},
        {"head": "fcn"},
        {"heads": 5},
        {"levels": (0, 1, 2)},
        {"levels": (0, 1, 2, 2)},
        {"levels": (3, 1, 2, 3)},
        {"head": "segvit", "width": 10, "head_heads": 4},
    ],
)
def test_what_cannot_be_built_is_refused(options):
    with pytest.raises(UsageError):
        small(**options)


def test_a_batch_of_one_is_refused_where_batch_norm_needs_more():
    x = torch.randn(1, 1, 64, 64)
    with pytest.raises(UsageError, match="batch"):
        small().train()(x)
    assert small().eval()(x).shape == (1, 2, 64, 64) and len(small(head="segvit", head_heads=2).train()(x)) == 3


# ------------------------------------------------------------------------------------------------------------------------------- weights
def test_weights_of_another_size_channels_and_head_are_adopted(tmp_path):
    """A grey image gives, through weights of three channels, what the same image in every channel gave; another image size has other
    tables, and one that blocks share goes to all."""
    theirs, mine = randomised(small(3, window=(96, 96))), small(1, head="segvit", head_heads=2)
    save_file({f"encoder.{k}": v.contiguous() for k, v in theirs.backbone.state_dict().items()}, tmp_path / "w.safetensors")
    adopt(mine.backbone, tmp_path / "w.safetensors")
    x = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(mine.eval().backbone(x)[-1], theirs.backbone(x.expand(-1, 3, -1, -1))[-1], atol=1e-4, rtol=1e-4)
    state = {f"method/network.backbone.{k}": v.contiguous() for k, v in mine.backbone.state_dict().items() if "table" not in k}
    shared = torch.randn(distances((4, 4)) + 3, 2)
    save_file({**state, "rel_pos_bias.relative_position_bias_table": shared}, tmp_path / "method.safetensors")
    adopt(mine.backbone, tmp_path)  # a run's folder
    assert all(torch.equal(b.attn.relative_position_bias_table, shared) for b in mine.backbone.blocks)


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        adopt(small().backbone, tmp_path / "none.safetensors")
    state = {k: v.contiguous() for k, v in small().backbone.state_dict().items()}
    save_file({k: v for k, v in state.items() if k != "cls_token"}, tmp_path / "lacking.safetensors")
    with pytest.raises(DataError, match="cls_token"):
        adopt(small().backbone, tmp_path / "lacking.safetensors")
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(DataError, match="another shape"):
        adopt(small(dim=32).backbone, tmp_path / "other.safetensors")
