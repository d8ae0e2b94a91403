"""How a forward on windows becomes maps of a whole image (``sliding``), and how that forward becomes fast (``backends``)."""

from .backends import Forward, accelerate
from .sliding import SlidingWindow

__all__ = ["Forward", "SlidingWindow", "accelerate"]
