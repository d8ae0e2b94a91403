"""2.5D: who sees which slice, what a vote is, what the arms cost, and that one method is all of them."""

import runpy
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from vesalius import catalog
from vesalius.core.case import Batch
from vesalius.core.errors import UsageError
from vesalius.core.geometry import Spacing
from vesalius.core.manifest import Manifest
from vesalius.core.method import Clock, Stage
from vesalius.core.plan import Plan
from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.progress import Progress
from vesalius.engine.study import read_as
from vesalius.methods.networks.two_and_half_d import ALONE, ThroughSlices, training_flops
from vesalius.networks.two_and_half_d import ConvLSTM, Join, Slices, border, bridge, cut, stack, vote
from vesalius.networks.unet import UNet

THICK = {"features": (4, 8), "strides": ((1, 1, 1), (1, 2, 2)), "kernels": ((1, 3, 3), (3, 3, 3))}
CUBE = {"features": (4, 8), "strides": ((1, 1, 1), (2, 2, 2)), "kernels": ((3, 3, 3),) * 2}
ARMS = [
    {"arm": "2d"},
    {"arm": "slices"},
    {"arm": "slices", "slices": 5},
    *({"arm": "views", "vote": v} for v in ("majority", "weighted", "learned")),
    {"arm": "views", "see_image": True},
    {"arm": "recurrent"},
    *({"arm": "attention", "guide": g} for g in ("shape", "border")),
    *({"arm": "fused", "meet": m, "join": j} for m, j in product(("encoder", "output"), ("add", "se"))),
    {"arm": "3d"},
]
NAMES = [" ".join(str(v) for v in a.values()) for a in ARMS]


def net(arm: dict | str, *, axis: int = 0, inp: int = 1, out: int = 3, levels=None) -> torch.nn.Module:
    torch.manual_seed(0)
    return bridge(inp, out, axis=axis, **(levels or THICK), **({"arm": arm} if isinstance(arm, str) else arm)).eval()


def method(*, channels: int = 1, classes: int = 3, plan: dict | None = None, **options):
    torch.manual_seed(0)
    names = {"background": 0, **{f"c{k}": k for k in range(1, classes)}}
    images = tuple(f"i{k}" for k in range(channels))
    settings = {"patch": (4, 16, 16), "batch": 2, **THICK, **(plan or {})}
    manifest = Manifest("made", Path("."), 3, images, names, ())
    return catalog.build("two-and-half-d", Plan(3, images, channels, tuple(names), **settings), manifest, options={"width": 4, **options})


def batch(m, classes: int = 3) -> Batch:
    image = torch.randn(2, m.in_channels, *m.plan.patch)
    return Batch(image, {"reference": torch.randint(0, classes, (2, *m.plan.patch))}, torch.eye(4).expand(2, 4, 4), ["a", "b"])


def influence(network, axis: int = 0, at: int = 3, depth: int = 8) -> list[int]:
    """The slices of the answer that change when slice ``at`` of the image does."""
    torch.manual_seed(1)
    shape = [16, 16, 16]
    shape[axis] = depth
    x = torch.randn(1, 1, *shape)
    other = x.clone()
    other.select(2 + axis, at).add_(torch.randn(16, 16))
    with torch.no_grad():
        change = (network(x) - network(other)).abs().movedim(2 + axis, 0).flatten(1).amax(1)
    return [i for i in range(depth) if change[i] > 1e-7]


class TestSlices:
    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_cutting_and_stacking_again_is_exact_along_every_axis(self, axis):
        x = torch.randn(2, 3, 4, 5, 6)
        slices = cut(x, axis)
        torch.testing.assert_close(slices[1], x[0].select(1 + axis, 1))
        assert torch.equal(stack(slices, axis, x.shape[2 + axis]), x)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    def test_one_slice_at_once_is_the_2d_network(self, axis):
        one, x = net({"arm": "slices", "slices": 1}, axis=axis, levels=CUBE), torch.randn(1, 1, 8, 8, 8)
        each = [one.unet(x.select(2 + axis, i)) for i in range(8)]
        torch.testing.assert_close(one(x), torch.stack(each, 2 + axis))
        two = net("2d", axis=axis, levels=CUBE)
        two.load_state_dict(one.state_dict())
        assert torch.equal(two(x), one(x))

    def test_a_slice_at_the_end_is_its_own_missing_neighbour(self):
        three, x = net({"arm": "slices", "slices": 3}), torch.randn(1, 1, 4, 8, 8)
        torch.testing.assert_close(three(x)[:, :, 0], three.unet(x[:, 0, [0, 0, 1]]))
        torch.testing.assert_close(three(x)[:, :, 3], three.unet(x[:, 0, [2, 3, 3]]))
        assert three(x[:, :, :1]).shape == (1, 3, 1, 8, 8)

    @pytest.mark.parametrize("slices", [0, 2, -3])
    def test_an_even_number_of_slices_has_no_middle(self, slices):
        with pytest.raises(UsageError, match="either side"):
            Slices(1, 2, axis=0, slices=slices, **THICK)


class TestWhoSeesWhat:
    @pytest.mark.parametrize("arm, seen", [("2d", [3]), ("slices", [2, 3, 4]), ({"arm": "slices", "slices": 5}, [1, 2, 3, 4, 5])])
    def test_slices(self, arm, seen):
        assert influence(net(arm)) == seen

    def test_a_fresh_recurrence_adds_nothing_and_then_reaches_all_slices(self):
        r = net("recurrent")
        assert influence(r) == [3]
        torch.testing.assert_close(r(x := torch.randn(1, 1, 4, 8, 8)), r.alone(x))
        torch.nn.init.ones_(r.add.weight)
        assert influence(r) == list(range(8))

    def test_attention_reads_the_neighbours_answers(self):
        assert influence(net("attention")) == [2, 3, 4]
        assert influence(net({"arm": "attention", "guide": "border"})) == [2, 3, 4]

    @pytest.mark.parametrize("arm", [a for a in ARMS if a["arm"] in ("fused", "3d")], ids=str)
    def test_3d_features_reach_further_than_the_slice(self, arm):
        assert {2, 3, 4} <= set(influence(net(arm)))

    def test_the_guide_gets_no_gradient(self):
        g, x = net("attention").train(), torch.randn(1, 1, 4, 8, 8)
        again, _ = g(x)
        again.sum().backward()
        assert g.head.weight.grad is None and g.attend.weight.grad.abs().sum() > 0
        with torch.no_grad():
            g.eval().attend.bias.fill_(-1e3)  # a = 0: the slice as it was
            g.attend.weight.zero_()
            maps = g.unet(cut(x, 0))
            torch.testing.assert_close(g(x), stack(g.again(maps), 0, 4))

    def test_border(self):
        p = torch.zeros(1, 1, 7, 9)
        p[..., 2:5, 3:7] = 1
        b = border(p)[0, 0]
        assert set(b.unique().tolist()) == {0.0, 1.0} and b[3, 4] == 0 and b[0].sum() == 0
        assert b[1:6, 2:8].sum() == 5 * 6 - 1 * 2  # all but what no border touches


class TestConvLSTM:
    def test_against_the_formula_step_by_step(self):
        torch.manual_seed(0)
        lstm, x = ConvLSTM(2, 3), torch.randn(1, 4, 2, 5, 5)
        h = c = torch.zeros(1, 3, 5, 5)
        for t in range(4):
            i, f, o, g = (lstm.of_input(x[:, t]) + lstm.of_state(h)).split(3, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            torch.testing.assert_close(lstm(x)[:, t], h)

    def test_the_past_does_not_know_the_future(self):
        torch.manual_seed(0)
        lstm, x = ConvLSTM(1, 2), torch.randn(1, 5, 1, 4, 4)
        later = x.clone()
        later[:, 3:] += 1
        change = (lstm(x) - lstm(later)).abs().amax((0, 2, 3, 4))
        assert change[:3].max() == 0 and change[3:].min() > 0


class TestVote:
    @staticmethod
    def sure(labels: torch.Tensor, classes: int = 3) -> torch.Tensor:
        return torch.nn.functional.one_hot(labels, classes).movedim(-1, 1).float() * 0.7 + 0.1

    def test_three_of_one_mind(self):
        torch.manual_seed(0)
        labels = torch.randint(0, 3, (2, 4, 5, 6))
        said = vote([self.sure(labels)] * 3, (1, 1, 1))
        assert torch.equal(said.argmax(1), labels)
        torch.testing.assert_close(said.exp().sum(1), torch.ones(2, 4, 5, 6))

    def test_the_majority_wins_and_equal_weights_are_none(self):
        torch.manual_seed(0)
        labels = [torch.randint(0, 3, (1, 6, 7, 8)) for _ in range(3)]
        said = vote([self.sure(x) for x in labels], (1, 1, 1)).argmax(1)
        same = vote([self.sure(x) for x in labels], (2.5, 2.5, 2.5)).argmax(1)
        brute = torch.stack(labels).mode(0).values
        clear = (labels[0] == labels[1]) | (labels[0] == labels[2]) | (labels[1] == labels[2])
        assert torch.equal(said[clear], brute[clear]) and torch.equal(said, same)

    def test_a_heavy_view_decides_alone(self):
        one, other = torch.zeros(1, 2, 2, 2, dtype=torch.long), torch.ones(1, 2, 2, 2, dtype=torch.long)
        maps = [self.sure(one), self.sure(other), self.sure(other)]
        assert torch.equal(vote(maps, (1, 1, 1)).argmax(1), other) and torch.equal(vote(maps, (2.5, 1, 1)).argmax(1), one)

    def test_the_surer_side_of_a_tie_wins(self):
        maps = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.4, 0.6]])]
        maps = [m.view(1, 2, 1, 1, 1) for m in maps]
        assert vote(maps, (1, 1)).argmax(1).item() == 0

    def test_only_the_slices_own_view_is_weighed(self):
        assert net({"arm": "views", "vote": "weighted", "weight": 3.0}, axis=1).weights == (1.0, 3.0, 1.0)
        assert net({"arm": "views", "vote": "majority"}, axis=1).weights == (1.0, 1.0, 1.0)

    def test_views_learn_alone_and_the_fusion_teaches_them_nothing(self):
        v = net({"arm": "views", "vote": "learned"}, levels=CUBE).train()
        fused, *maps = v(torch.randn(1, 1, 8, 8, 8))
        fused.sum().backward()
        assert len(maps) == 3 and v.fusion[2].weight.grad is not None
        assert all(p.grad is None for p in v.views.parameters())

    def test_each_view_cuts_its_own_axis(self):
        v = net({"arm": "views", "vote": "majority"}, levels=CUBE)
        for axis, view in enumerate(v.views):
            assert influence(view, axis) == [3]


class TestJoin:
    def test_addition_is_symmetric_and_se_scales_channels_between_0_and_1(self):
        torch.manual_seed(0)
        a, b = torch.randn(2, 4, 3, 3, 3), torch.randn(2, 4, 3, 3, 3)
        assert torch.equal(Join(4, "add")(a, b), a + b)
        se = Join(4, "se")
        scale = se.excite(torch.cat([a, b], 1).mean((2, 3, 4)))
        assert scale.shape == (2, 8) and (0 < scale).all() and (scale < 1).all()
        torch.testing.assert_close(se(a, b), se.mix(torch.cat([a, b], 1) * scale[..., None, None, None]))

    def test_encoders_cost_less_than_outputs(self):
        window = (1, 8, 16, 16)
        costs = [training_flops(net({"arm": "fused", "meet": meet}, levels=CUBE), window) for meet in ("encoder", "output")]
        assert costs[0] < costs[1]


class TestAsPublished:
    """Width 8, five levels, halved in all directions: the specification's parameters."""

    LEVELS = {"features": (8, 16, 32, 64, 128)}

    def size(self, arm: dict | str) -> float:
        with torch.device("meta"):
            return sum(p.numel() for p in net(arm, out=2, levels=self.LEVELS).parameters()) / 1e6

    def test_parameters(self):
        assert self.size("3d") == pytest.approx(1.403, rel=0.02)
        assert self.size("2d") == pytest.approx(0.5, rel=0.05)
        assert all(0.45 < self.size(arm) < 0.55 for arm in ("slices", "recurrent", "attention"))

    def test_bridges_cost_what_the_study_says_and_2d_least(self):
        arms = ("slices", "recurrent", "attention", "3d")
        flops = {a: training_flops(net(a, levels=self.LEVELS), (1, 16, 32, 32)) for a in ("2d", *arms)}
        times = {a: flops[a] / flops["2d"] for a in arms}
        assert min(times.values()) > 1 and times["slices"] < 1.1 and max(times[a] for a in arms[:3]) < 2.3


class TestMethod:
    @pytest.mark.parametrize("arm", ARMS, ids=NAMES)
    @pytest.mark.parametrize("channels, classes, patch", [(1, 2, (3, 17, 14)), (3, 7, (4, 16, 16))])
    def test_every_arm_learns_in_any_size(self, arm, channels, classes, patch):
        m = method(channels=channels, classes=classes, plan={"patch": patch, **CUBE}, **arm)
        for stage in m.stages():
            m.stage = stage
            terms = m.train().losses(batch(m, classes), Clock(0, 10), "main")
            sum(terms.values()).backward()
            m.after_step(Clock(0, 10))
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in m.network.parameters())
        with torch.no_grad():
            for depth in (patch[0], 1):  # a volume of one slice too
                x = torch.randn(2, channels, depth, *patch[1:])
                both = m.eval()(x)
                assert both.shape == (2, classes, depth, *patch[1:]) and torch.isfinite(both).all()
                torch.testing.assert_close(both[1:], m(x[1:]), atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("arm", ["recurrent", "attention"])
    def test_the_2d_part_learns_first(self, arm):
        m = method(arm=arm)
        first, then = m.stages()
        assert (first.name, first.share, then.share) == (ALONE, 0.5, 0.5)
        m.stage = first
        m.train().losses(batch(m), Clock(0, 10))["segmentation"].backward()
        reached = {n for n, p in m.named_parameters() if p.grad is not None}
        assert reached == {n for n, _ in m.named_parameters() if n.startswith(first.trainable)}
        assert [s.name for s in method(arm=arm, warm=0.0).stages()] == ["main"]

    def test_slices_lie_across_the_coarsest_axis(self):
        assert method().axis == 0  # the plan's kernels say so
        assert method(plan=CUBE).axis == 2
        assert method(plan={"grid": Spacing(1.0, 5.0, 1.0)}).axis == 1
        assert method(axis=2).axis == 2

    @pytest.mark.parametrize(
        "options, said",
        [
            ({"arm": "3d", "slices": 5}, "means nothing to this arm"),
            ({"arm": "2d", "vote": "majority"}, "means nothing to this arm"),
            ({"arm": "views", "weight": 3.0}, "means nothing to this arm"),
            ({"arm": "views", "vote": "majority", "see_image": True}, "means nothing to this arm"),
            ({"arm": "fused", "warm": 0.2}, "means nothing to this arm"),
            ({"arm": "recurrent", "warm": 1.0}, "impossible 'warm'"),
            ({"arm": "views", "vote": "weighted", "weight": 0.0}, "impossible 'weight'"),
            ({"width": 0}, "impossible 'width'"),
            ({"axis": 3}, "impossible 'axis'"),
            ({"patience": -1}, "impossible 'patience'"),
            ({"slices": 4}, "either side"),
            ({"arm": "4d"}, "wrong type"),
        ],
    )
    def test_what_means_nothing_is_refused(self, options, said):
        with pytest.raises(UsageError, match=said):
            method(**options)

    def test_the_rate_halves_when_an_epoch_no_longer_helps(self):
        m = method(patience=2)
        rates = []
        for step, loss in enumerate([3, 3, 2, 2, 2, 2, 2.5, 2, 1, 1, 1, 1]):  # epochs of two steps: 3, 2, 2, 2.25, 1, 1
            clock = Clock(step, 12, step // 2)
            rates.append(m.learning_rate(clock))
            m.seen = torch.tensor(float(loss))
            m.after_step(clock)
        assert rates == [1.0] * 9 + [0.5] * 3
        assert m.learning_rate(Clock(0, 12)) == 1.0  # another stage begins anew
        assert method(patience=0).learning_rate(Clock(5, 12)) == 1.0

    def test_the_plateau_is_part_of_the_state(self):
        m, again = method(), method()
        m.plateau[5] = 3
        again.load_state(*m.state())
        assert again.learning_rate(Clock(4, 10)) == 0.125


class TestCost:
    def test_flops_are_those_of_the_formula(self):
        conv = torch.nn.Conv2d(2, 3, 3, padding=1, bias=False)
        wrapped = torch.nn.Sequential(conv)
        forward = 2 * 9 * 2 * 3 * 8 * 8
        assert training_flops(wrapped, (2, 8, 8)) == 2 * forward  # the image needs no gradient: forward, and that of the weights

    def test_equal_cost_means_fewer_steps(self):
        plan = {"patch": (8, 16, 16), **CUBE}
        share = {a["arm"]: method(plan=plan, cost="flops", **a).share() for a in ({"arm": x} for x in ("2d", "slices", "attention", "3d"))}
        assert share["2d"] == 1.0 and 1 > share["slices"] > share["attention"] > share["3d"] > 0.1
        warm = [method(plan=plan, cost="flops", arm="attention", warm=w).share() for w in (0.0, 0.5, 0.9)]
        assert warm == sorted(warm)
        views = method(plan=plan, arm="views", vote="majority").share()
        assert views == pytest.approx(1 / 3, rel=0.02)

    @pytest.mark.parametrize("cost, share", [("steps", 1.0), ("flops", None)])
    def test_the_loop_is_lent_that_share(self, cost, share):
        asked = {}

        class Lent:
            def log(self, **values):
                asked.update(values)

            def train(self, method, train, val, *, share):
                asked["share"] = share

        m = method(arm="3d", cost=cost)
        m.fit(["a"], [], Lent())
        assert asked["share"] == asked["steps_share"] == (share or m.share()) and (share == 1.0 or asked["share"] < 1)


class TestInference:
    def test_windows_are_no_deeper_than_the_case(self):
        seen = []

        def forward(windows):
            seen.append(tuple(windows.shape[2:]))
            return windows

        through = ThroughSlices((8, 4, 4), overlap=0.5, axis=0)
        x = torch.randn(1, 3, 9, 3)
        torch.testing.assert_close(through(forward, x), x)
        assert set(seen) == {(3, 4, 4)}
        deep = torch.randn(1, 20, 9, 5)
        torch.testing.assert_close(through(forward, deep), deep)
        assert seen[-1] == (8, 4, 4)

    def test_the_method_uses_them_and_can_still_be_cut_into_blocks(self):
        from vesalius.engine.infer import can_be_cut

        m = method(arm="3d")
        assert m.inferer().axis == 0 and can_be_cut(m)
        m.stage = Stage()
        answer = m.inferer()(m.eval(), torch.randn(1, 2, 20, 11))
        assert answer.shape == (3, 2, 20, 11) and np.isfinite(answer.detach().numpy()).all()


def test_the_3d_arm_is_the_planned_unet():
    three = net("3d", levels=CUBE)
    assert isinstance(three, UNet) and three.multiple == (2, 2, 2)


PROOF = Path(__file__).resolve().parents[3] / "proofs" / "networks" / "two_and_half_d.py"


def test_the_proofs_arms_are_of_equal_cost():
    s = runpy.run_path(str(PROOF))["study"]()
    assert {e.arm for e in s.expects} | {e.against or s.baseline for e in s.expects} <= {a.name for a in s.arms}
    assert {a.options["arm"] for a in s.arms} == {a["arm"] for a in ARMS}  # every family
    for data, axis in zip(s.data, (0, 2), strict=True):
        plan = {**s.plan, **data.plan}
        costs = {}
        for arm in s.arms:
            m = method(plan=plan, classes=4, **catalog.coerce("two-and-half-d", {**arm.options, "width": 8}))
            assert m.axis == axis and all(p % k == 0 for p, k in zip(m.plan.patch, m.network.multiple, strict=True))
            per_step = sum(t.share * training_flops(m.network, (1, *m.plan.patch), alone=t.name == ALONE) for t in m.stages())
            costs[arm.name] = m.share() * per_step
        assert max(costs.values()) == pytest.approx(min(costs.values()), rel=1e-6)


def test_the_proofs_votes_share_a_training_and_its_table_has_the_costs(tmp_path, monkeypatch):
    monkeypatch.setenv("VESALIUS_CACHE", str(tmp_path / "cache"))
    proof = runpy.run_path(str(PROOF))
    s, data = proof["study"](), open_dataset("phantom:shapes-3d?cases=3,1,1")
    few = replace(s, arms=tuple(a for a in s.arms if a.name in ("2d", "3 views, majority", "3 views, weighted")))
    for grid, name in ((Spacing(3.0, 1.0, 1.0), "dsc, thick slices"), (Spacing(1.0, 1.0, 1.0), "dsc, cubes")):
        plan = {
            "grid": grid,
            "patch": (8, 16, 16),
            "features": (4, 8),
            "batch": 2,
            "precision": "32",
            "test_mirror": (),
            "threads": 1,
            **CUBE,
        }
        out = tmp_path / name
        rows = proof["measure"](few, data, out, seeds=1, iterations=6, plan=plan, progress=Progress(quiet=True))
        assert sorted(p.name for p in out.iterdir()) == ["2d", "3 views, majority"]
        assert {r["metric"] for r in rows} == {name, "hd95", *proof["COSTS"]} <= set(s.metrics)
        assert sum(r["metric"] == name for r in rows) == 3 * 2  # arms, structures
        mean = {(r["method"], r["metric"]): r["value"] for r in rows if r["metric"] in proof["COSTS"]}
        assert (
            mean["2d", "cost of a step"] == 1
            and mean["3 views, majority", "cost of a step"] == mean["3 views, weighted", "cost of a step"] > 2
        )
        assert mean["3 views, weighted", "thousand parameters"] > 2.5 * mean["2d", "thousand parameters"]
        assert all(mean[a.name, "ms a volume"] > 0 for a in few.arms)
        trained = api.open_run(out / "3 views, majority" / "seed_0")
        heavy = read_as(trained, few.arms[2])
        assert max(heavy.network.weights) == 2 and set(trained.method.network.weights) == {1.0}
        assert all(torch.equal(a, b) for a, b in zip(heavy.state_dict().values(), trained.method.state_dict().values(), strict=True))
