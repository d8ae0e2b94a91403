"""Facts of a data set: intensities are those of the foreground, wherever there is any."""

from vesalius.datasets import open_dataset
from vesalius.engine import api
from vesalius.engine.fingerprint import fingerprint


def test_cases_without_foreground_do_not_move_the_intensities():
    manifest = open_dataset("phantom:shapes-3d?empty=true")
    read, train = api.reader(manifest), manifest.where("train")
    marked = [i for i in train if (read(i).label.data > 0).any()]
    assert 0 < len(marked) < len(train)
    whole, without = (fingerprint(manifest, ids, read).intensities["image"] for ids in (train, marked))
    assert {k: v for k, v in whole.items() if k != "zero_share"} == {k: v for k, v in without.items() if k != "zero_share"}
