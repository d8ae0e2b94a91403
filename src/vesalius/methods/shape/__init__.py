"""Methods in which the shape or its contour is what is computed: the papers' cards, pure data."""

from ...core.card import Card

CARDS = (
    Card(
        slug="saliency-acm",
        title="Saliency-driven active contour",
        family="shape",
        kind="method",
        homes=("vesalius.methods.shape.saliency_acm:SaliencyACM",),
        paper="Saliency-Driven Active Contour Model for Image Segmentation",
        url="https://arxiv.org/abs/2205.11063",
        year=2022,
        task="two-phase segmentation under uneven illumination, without learning",
        dims=(2,),
        supervision="none",
        takes=("images",),
        gives=("labels", "images:phi"),
        learns=(),
        claim="a local fit of image and saliency together depends less on the first contour and on noise than either alone",
        baseline="Chan-Vese; local image fitting (a=0)",
        intensity="byte",
        phantom="shapes-2d",
        deviations=("grey values 0..255 instead of the plan's intensities: the energy's constants are on that scale", "nothing is learnt"),
    ),
)
