"""Saliency-driven active contour: a contour splits the image where local means explain grey values AND their saliency best.

Both phases are described by means in a small window, so that a slow change of brightness does no harm; fitting the saliency map in the same
way keeps the contour from settling on whatever grey step lies next to it. Nothing is learnt.

Iqbal et al., Saliency-Driven Active Contour Model for Image Segmentation, https://arxiv.org/abs/2205.11063; the image term is local image
fitting (LIF), Zhang et al., Pattern Recognition 2010, doi:10.1016/j.patcog.2009.10.010. Only the abstract could be read. [inferred]: the
saliency (frequency-tuned, Achanta et al. 2009), the form of its energy, eps, sigma, all weights, the stopping rule and polarity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.ndimage import binary_fill_holes, gaussian_filter

from ...core.case import Case, Image, LabelMap
from ...core.errors import UsageError, nearest
from ...core.manifest import Manifest
from ...core.method import Method
from ...core.plan import Plan
from ...core.prediction import Prediction
from ...ops import levelset as ls
from ...ops.components import largest

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
_EVERY = 10  # iterations between looks at the mask


class SaliencyACM(Method):
    """Energy E = a E_S + b E_LIF + nu length + mu penalty, on grey values 0..255 and distances in pixels.

    ``a``, ``b``: weights of the saliency and the image term (a=0 is LIF, b=0 is saliency only). ``nu``: contour length (0.001 * 255^2).
    ``mu``: how much |grad phi| = 1 is asked for (stable for mu * dt < 0.25). ``sigma``: window of the local means. ``eps``: width of
    Heaviside and delta. ``height``: phi starts at +-height. ``dt``: time step. The flow ends after ``iterations``, or when in 10 iterations
    less than ``tolerance`` of all pixels changed side. ``smoothing``: sd of a Gaussian on phi after each step (0.5-1 may replace mu; 0:
    none). ``reinitialise``: iterations between resets of phi to a signed distance (0: never). ``box``: first rectangle (top, left,
    bottom, right) as shares of the image. ``polarity``: the object is the 'salient' (larger mean saliency), 'bright' or 'dark' side, or
    'inside' (phi > 0 as it is). ``fill_holes`` and ``keep`` (largest components, 0: all) clean the mask. ``target``: the class to
    segment; empty: the manifest's first foreground class. Every default but sigma and dt is [inferred].
    """

    intensity = "byte"

    def __init__(
        self,
        plan: Plan,
        manifest: Manifest,
        *,
        parts: Mapping[str, Method] | None = None,
        a: float = 1.0,
        b: float = 1.0,
        nu: float = 0.001 * 255**2,
        mu: float = 1.0,
        sigma: float = 3.0,
        eps: float = 1.5,
        height: float = 2.0,
        dt: float = 0.1,
        iterations: int = 300,
        tolerance: float = 1e-3,
        smoothing: float = 0.0,
        reinitialise: int = 0,
        box: tuple[float, ...] = (0.25, 0.25, 0.75, 0.75),
        polarity: Literal["salient", "bright", "dark", "inside"] = "salient",
        fill_holes: bool = False,
        keep: int = 0,
        target: str = "",
    ):
        super().__init__(plan, manifest, parts=parts)
        self.a, self.b, self.nu, self.mu, self.sigma, self.eps = a, b, nu, mu, sigma, eps
        self.height, self.dt, self.iterations, self.tolerance = height, dt, iterations, tolerance
        self.smoothing, self.reinitialise, self.box = smoothing, reinitialise, box
        self.polarity, self.fill_holes, self.keep = polarity, fill_holes, keep
        self.target = target or manifest.names[1]
        self._check()

    # the paper -------------------------------------------------------------------------------------------------------------------------
    def energy(self, phi: np.ndarray, grey: np.ndarray) -> float:
        """E of a level set (H, W) on grey values (H, W)."""
        terms = self._terms(grey)
        inside = ls.heaviside(phi, self.eps)
        m1, m2 = ls.local_means(terms, inside, self.sigma)
        fit = 0.5 * ((terms - _fitted(m1, m2, inside)) ** 2).sum((1, 2))
        return float(self._weights @ fit) + self.nu * ls.contour_length(phi, self.eps) + self.mu * ls.distance_penalty(phi)

    def flow(self, phi: np.ndarray, terms: np.ndarray) -> np.ndarray:
        """phi_t (H, W): the descent of E with the local means held fixed; ``terms`` (2, H, W) are saliency and image.

        delta [a (S - S_LIF)(s1 - s2) + b (I - I_LIF)(m1 - m2)] + nu delta kappa + mu (laplace phi - kappa).
        """
        inside, front = ls.heaviside(phi, self.eps), ls.delta(phi, self.eps)
        m1, m2 = ls.local_means(terms, inside, self.sigma)
        force = (terms - _fitted(m1, m2, inside)) * (m1 - m2)
        out = front * np.tensordot(self._weights.astype(phi.dtype), force, 1)
        if self.nu or self.mu:
            kappa = ls.curvature(phi)
            out += self.nu * front * kappa + self.mu * (ls.laplacian(phi) - kappa)
        return out

    def evolve(self, grey: np.ndarray, phi: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """(phi (H, W), iterations used) for grey values 0..255 (H, W), from the rectangle or a given ``phi``; keeps a float's type."""
        grey = np.asarray(grey, np.result_type(grey, np.float32))
        phi = ls.rectangle(grey.shape, self.box[:2], self.box[2:], self.height) if phi is None else phi
        phi, terms, before = phi.astype(grey.dtype), self._terms(grey), phi > 0
        for n in range(1, self.iterations + 1):
            phi = phi + self.dt * self.flow(phi, terms)
            if self.smoothing:
                phi = gaussian_filter(phi, self.smoothing, mode="nearest")
            if self.reinitialise and n % self.reinitialise == 0:
                phi = ls.reinitialise(phi)
            if n % _EVERY == 0:
                now = phi > 0
                if np.mean(now != before) < self.tolerance:
                    return phi, n
                before = now
        return phi, self.iterations

    # the contract ----------------------------------------------------------------------------------------------------------------------
    def predict(self, case: Case, prompts: Sequence = (), *, rng: np.random.Generator) -> Prediction:
        """Label map of the target class, and the level set as image 'phi' (positive on the object)."""
        grey = _grey(case.stack(self.plan.channels or None))
        phi, used = self.evolve(grey)
        phi = phi * self._sign(phi > 0, grey)
        mask = phi > 0
        if self.fill_holes:
            mask = binary_fill_holes(mask)
        if self.keep:
            mask = largest(mask, self.keep)
        names = self.manifest.names
        label = LabelMap((mask * names.index(self.target)).astype(np.int16), case.geometry, names)
        note = () if used < self.iterations else (f"the contour was still moving after {used} iterations",)
        return Prediction(labels={"prediction": label}, images={"phi": Image(phi[None], case.geometry, normalise=False)}, notes=note)

    @property
    def _weights(self) -> np.ndarray:
        return np.array([self.a, self.b])

    def _terms(self, grey: np.ndarray) -> np.ndarray:
        """(2, H, W): what the local means are fitted to, saliency and image."""
        return np.stack([ls.saliency(grey), grey])

    def _sign(self, inside: np.ndarray, grey: np.ndarray) -> int:
        """-1 where the object is the outside."""
        if self.polarity == "inside" or inside.all() or not inside.any():
            return 1
        measure = ls.saliency(grey) if self.polarity == "salient" else grey if self.polarity == "bright" else -grey
        return 1 if measure[inside].mean() >= measure[~inside].mean() else -1

    def _check(self) -> None:
        names, where = self.manifest.names, "saliency-acm"
        if self.plan.dims != 2:
            raise UsageError("this method segments 2D images", where=where, found=f"{self.plan.dims}D")
        if self.target not in names[1:]:
            raise UsageError(f"no foreground class '{self.target}'", where=f"{where} target", fix=nearest(self.target, names[1:]))
        if not (self.dt > 0 and self.mu >= 0 and self.mu * self.dt < 0.25):
            raise UsageError("the flow is unstable", where=f"{where} mu, dt", found=(self.mu, self.dt), allowed="dt > 0, 0 <= mu dt < 0.25")
        low, high = self.box[:2], self.box[2:]
        if len(self.box) != 4 or not all(0 <= p < q <= 1 for p, q in zip(low, high, strict=True)):
            raise UsageError("no such rectangle", where=f"{where} box", found=self.box, allowed="top,left,bottom,right in 0..1, low < high")
        for name in ("sigma", "eps", "height", "iterations"):
            if not getattr(self, name) > 0:
                raise UsageError("this is positive", where=f"{where} {name}", found=getattr(self, name))
        for name in ("a", "b", "nu", "tolerance", "smoothing", "reinitialise", "keep"):
            if not getattr(self, name) >= 0:
                raise UsageError("this is not negative", where=f"{where} {name}", found=getattr(self, name))


def _fitted(m1: np.ndarray, m2: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The local fitted image m1 H + m2 (1 - H)."""
    return m1 * inside + m2 * (1 - inside)


def _grey(stack: np.ndarray) -> np.ndarray:
    """(C, H, W) -> (H, W): luminance of RGB, else the mean of the channels."""
    return np.tensordot(np.float32(_LUMINANCE), stack, 1) if len(stack) == 3 else stack.mean(0)
