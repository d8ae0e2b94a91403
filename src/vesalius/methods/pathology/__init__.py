"""Whole-slide images: tissue, lesions and cells in pathology."""

from ...core.card import Card

CARDS: tuple[Card, ...] = (
    Card(
        slug="slide-segmenter",
        title="Tissue, pen marks and cross-sections of a slide, separated by votes for their centroids",
        family="pathology",
        kind="method",
        homes=("vesalius.methods.pathology.slide_segmenter:SlideSegmenter",),
        paper="Lucassen et al.: Tissue Cross-Section and Pen Marking Segmentation in Whole Slide Images (SPIE Medical Imaging 2024)",
        url="https://arxiv.org/abs/2401.13511",
        year=2024,
        task="tissue, pen marks and separate tissue cross-sections in whole-slide images",
        dims=(2,),
        supervision="full",
        takes=("images",),
        learns=("labels", "points"),
        gives=("labels", "instances", "table"),
        claim="Pixels that vote for the centroid of their cross-section put its fragments together and keep neighbouring sections apart, "
        "which connected components cannot.",
        baseline="Otsu's threshold, a size filter and connected components",
        intensity="unit",
        evidence="proof",
        phantom="slide",
        deviations=(
            "normalises to 0..1, so that glass is white everywhere",
            "its own rates: AdamW at 3e-4, halved after each fifth of the budget, no averaged model",
            "pastes drawn pen strokes into training patches",
        ),
    ),
)
