"""The cache of embeddings: how much it holds, and whose turn it is to go."""

from dataclasses import dataclass

import numpy as np

from vesalius.engine.embeddings import Embeddings


def test_the_cache_is_bounded_and_makes_again_what_it_forgot():
    cache, made = Embeddings(250), []

    def make(key):
        made.append(key)
        return np.zeros(100, np.uint8)

    for key in (1, 2, 1, 3, 1, 2):
        cache.get(key, lambda key=key: make(key))
        assert cache.bytes <= 250
    assert made == [1, 2, 3, 2]
    assert cache.get(9, lambda: {"a": np.zeros(1000, np.uint8)}) and len(cache.held) == 1, "one that is too large alone stays alone"


def test_embeddings_of_every_shape_are_counted():
    @dataclass
    class Looked:
        image: np.ndarray
        windows: dict

    held = Looked(np.zeros(100, np.uint8), {})
    cache = Embeddings(150)
    cache.get("a", lambda: held)
    held.windows["later"] = np.zeros(60, np.uint8)
    assert cache.bytes == 160, "also what an embedding took in later"
    cache.get("b", lambda: np.zeros(10, np.uint8))
    assert list(cache.held) == ["b"]
