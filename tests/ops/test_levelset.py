"""Level-set parts against closed forms."""

import numpy as np
import pytest

from vesalius.ops import levelset as ls


def circle(n=64, radius=18.0, dtype=float):
    y, x = np.mgrid[:n, :n] - (n - 1) / 2
    return (radius - np.hypot(y, x)).astype(dtype)


def test_delta_is_the_derivative_of_heaviside():
    phi = np.linspace(-8, 8, 101)
    numeric = (ls.heaviside(phi + 1e-5) - ls.heaviside(phi - 1e-5)) / 2e-5
    np.testing.assert_allclose(ls.delta(phi), numeric, atol=1e-8)
    np.testing.assert_allclose(ls.heaviside(phi) + ls.heaviside(-phi), 1)


def test_a_circles_curvature_length_and_slope():
    phi = circle()
    near = np.abs(phi) < 2
    np.testing.assert_allclose(ls.curvature(phi)[near].mean(), -1 / 18, rtol=0.05)
    np.testing.assert_allclose(ls.slope(phi)[near], 1, atol=0.01)
    narrow = ls.contour_length(phi, eps=0.5)
    assert narrow == pytest.approx(2 * np.pi * 18, rel=0.05)


def test_the_laplacian_of_a_parabola():
    y, x = np.mgrid[:9, :9].astype(float)
    np.testing.assert_allclose(ls.laplacian(y**2 + 3 * x**2)[1:-1, 1:-1], 8)


def test_a_signed_distance_pays_little_and_a_flat_phi_pays_half():
    assert ls.distance_penalty(np.zeros((10, 10))) == 50
    assert ls.distance_penalty(circle()) < 0.02 * ls.distance_penalty(np.zeros((64, 64)))


def test_local_means_of_a_two_valued_image_are_its_values():
    inside = circle() > 0
    image = np.where(inside, 90.0, 20.0)
    m1, m2 = ls.local_means(image, inside.astype(float), 3)
    front = np.abs(circle()) < 3
    np.testing.assert_allclose(m1[front], 90, rtol=1e-5)
    np.testing.assert_allclose(m2[front], 20, rtol=1e-5)


def test_local_means_of_a_stack_are_those_of_its_images():
    rng = np.random.default_rng(0)
    stack, inside = rng.uniform(0, 255, (2, 20, 24)), rng.uniform(0.1, 0.9, (20, 24))
    together = ls.local_means(stack, inside, 3)
    for k in range(2):
        for whole, one in zip(together, ls.local_means(stack[k], inside, 3)):
            np.testing.assert_allclose(whole[k], one)


def test_the_window_is_13_wide_at_sigma_3():
    image = np.zeros((41, 41))
    image[20, 20] = 1
    assert (ls.window(image, 3)[20] > 0).sum() == 13


def test_reinitialise_gives_a_signed_distance_and_the_same_mask():
    steep = np.tanh(circle(dtype=np.float32) / 3).astype(np.float32) * 40
    phi = ls.reinitialise(steep)
    assert phi.dtype == np.float32
    np.testing.assert_array_equal(phi > 0, steep > 0)
    assert np.abs(phi - circle()).max() < 1.0
    flat = np.ones((4, 4))
    assert ls.reinitialise(flat) is flat


def test_saliency_ignores_an_offset_and_scales_with_the_image():
    image = np.random.default_rng(1).uniform(0, 200, (32, 32))
    s = ls.saliency(image)
    np.testing.assert_allclose(ls.saliency(image + 40), s, atol=1e-9)
    np.testing.assert_allclose(ls.saliency(image * 0.5), s * 0.5, atol=1e-9)
    assert s.min() == 0 and s.max() == pytest.approx(np.ptp(image))
    assert not ls.saliency(np.full((8, 8), 7.3)).any()


def test_types_are_kept():
    phi, image = circle(dtype=np.float32), np.ones((64, 64), np.float32)
    made = [f(phi) for f in (ls.heaviside, ls.delta, ls.curvature, ls.laplacian, ls.slope)]
    made += [ls.saliency(image), *ls.local_means(image, ls.heaviside(phi), 3)]
    assert {m.dtype for m in made} == {np.dtype(np.float32)}


def test_a_rectangle():
    phi = ls.rectangle((8, 12), (0.25, 0.5), (0.75, 1.0))
    assert (phi > 0).sum() == 4 * 6 and set(np.unique(phi)) == {-2, 2}
