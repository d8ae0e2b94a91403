"""Masks as samples of a generative model."""

from ...core.card import Card

CARDS: tuple[Card, ...] = (
    Card(
        slug="sdseg",
        title="SDSeg: latent diffusion that segments in a single reverse step",
        family="generative",
        kind="method",
        homes=("vesalius.methods.generative.sdseg:SDSeg",),
        paper="Lin et al.: Stable Diffusion Segmentation for Biomedical Images with Single-step Reverse Process (MICCAI 2024)",
        url="https://arxiv.org/abs/2406.18361",
        year=2024,
        task="segmentation",
        dims=(2,),
        supervision="full",
        takes=("images",),
        gives=("labels", "probability", "samples"),
        claim="A latent diffusion model whose clean latent is supervised at every time segments as well in one reverse step as in fifty.",
        baseline="the same network trained by the noise loss alone, at 1 and 50 steps; unet",
        phantom="polyp",
        small={"features": (8, 8, 16), "width": 16, "multiples": (1, 2), "dropout": 0.0, "lr": 2e-3},
        weights="none; Stable Diffusion's autoencoder from a local folder in diffusers' layout (--set pretrained=FOLDER, with its sizes)",
        deviations=("a share of the budget trains the autoencoder, which the paper takes ready-made",),
    ),
)
