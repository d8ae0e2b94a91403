"""Polyp-PVT and its backbone: sizes as published, what each module sees, and inputs of all kinds."""

import pytest
import torch

from vesalius.core.errors import GeometryError, UsageError
from vesalius.networks.blocks.pvt_v2 import PVTv2, ReducedAttention
from vesalius.networks.polyp_pvt import Aggregation, Camouflage, PolypPVT
from vesalius.objectives.structure_loss import StructureLoss

SMALL = dict(spatial_dims=2, width=8, depths=(1, 1, 1, 1), channels=8)


def small(channels: int = 3, out: int = 1) -> PolypPVT:
    torch.manual_seed(0)
    return PolypPVT(channels, out, **SMALL)


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameters_as_published():
    with torch.device("meta"):
        student, teacher = PolypPVT(3, 1, spatial_dims=2), PolypPVT(3, 1, spatial_dims=2, width=64, depths=(3, 4, 6, 3))
    assert parameters(student) == pytest.approx(3.7e6, rel=0.02) and parameters(teacher) == pytest.approx(25.11e6, rel=0.002)
    # PVT v2 without their classifiers of 1000 classes: 3,666,760 and 25,362,856 with
    assert parameters(student.backbone) == 3_666_760 - 257_000 and parameters(teacher.backbone) == 25_362_856 - 513_000
    assert student.backbone.features == (32, 64, 160, 256) and teacher.backbone.features == (64, 128, 320, 512)


def test_parameters_are_named_as_in_the_published_weights():
    names = set(PVTv2(3, width=8, depths=(1, 1, 1, 1)).state_dict())
    known = "patch_embed1.proj.weight patch_embed4.norm.bias block1.0.attn.sr.weight block1.0.attn.norm.bias block1.0.attn.kv.weight"
    known += " block2.0.attn.q.bias block3.0.attn.proj.weight block4.0.mlp.fc1.weight block1.0.mlp.dwconv.dwconv.weight norm4.weight"
    assert set(known.split()) <= names and "block4.0.attn.sr.weight" not in names


def test_levels_at_strides_4_to_32():
    levels = PVTv2(1, width=8, depths=(1, 1, 1, 1)).eval()(torch.randn(1, 1, 64, 96))
    assert [tuple(m.shape) for m in levels] == [(1, 8, 16, 24), (1, 16, 8, 12), (1, 40, 4, 6), (1, 64, 2, 3)]


def test_attention_that_is_not_reduced_is_torchs():
    torch.manual_seed(0)
    ours, theirs = ReducedAttention(8, 2, 1), torch.nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([ours.q.weight, ours.kv.weight]),
            "in_proj_bias": torch.cat([ours.q.bias, ours.kv.bias]),
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(2, 12, 8)
    torch.testing.assert_close(ours(x, (3, 4)), theirs(x, x, x, need_weights=False)[0])


def test_the_answer_is_the_sum_of_two_maps():
    net, x = small(), torch.randn(2, 3, 64, 96)
    both = net.train()(x)
    assert len(both) == 2 and all(m.shape == (2, 1, 64, 96) for m in both)
    net.eval()
    first, second = net.maps(x)
    assert torch.equal(net(x), first + second) and not torch.equal(first, second)


def test_the_first_level_reaches_the_second_map_alone():
    net, x = small().eval(), torch.randn(1, 3, 64, 64)
    before = net.maps(x)
    with torch.no_grad():
        net.look[1][0].weight.neg_()
    after = net.maps(x)
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


def test_a_graph_that_adds_nothing_leaves_the_feature():
    torch.manual_seed(0)
    graph, x, detail = Aggregation(8, 4), torch.randn(2, 8, 9, 7), torch.randn(2, 8, 9, 7)
    assert graph(x, detail).shape == x.shape and not torch.allclose(graph(x, detail), x)
    with torch.no_grad():
        graph.extend.weight.zero_()
    assert torch.equal(graph(x, detail), x)


def test_gates_only_weaken():
    x = torch.randn(2, 16, 5, 6)
    assert (Camouflage(16)(x).abs() <= x.abs()).all()


@pytest.mark.parametrize("channels, out", [(1, 1), (3, 6)])
def test_every_parameter_learns(channels, out):
    net = small(channels, out).train()
    torch.manual_seed(3)
    maps = net(torch.randn(2, channels, 64, 96))
    sum(StructureLoss()(m, torch.randint(0, out + 1, (2, 64, 96))) for m in maps).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_bad_input_in_one_sentence():
    with pytest.raises(GeometryError, match="Polyp-PVT cannot divide"):
        small().eval()(torch.randn(1, 3, 50, 64))
    with pytest.raises(UsageError, match="2D network"):
        PolypPVT(1, 1, spatial_dims=3)
    with pytest.raises(UsageError, match="four stages"):
        PolypPVT(1, 1, spatial_dims=2, depths=(1, 1))
    with pytest.raises(UsageError, match="more than one value"):
        small().train()(torch.randn(1, 3, 32, 32))
