"""Networks: plain ``nn.Module``s that return logits, one paper one file. ``CARDS`` lists those a user trains by name."""

from ..core.card import Card

CARDS = (
    Card(
        slug="unet",
        title="Planned U-Net: a self-configuring encoder-decoder in nnU-Net's spirit",
        family="networks",
        kind="network",
        homes=("vesalius.networks.unet:UNet",),
        recipe={"base": "vesalius.methods.planned:PlannedUNet"},
        paper="Ronneberger, Fischer, Brox: U-Net (MICCAI 2015); planning after Isensee et al.: nnU-Net (Nature Methods 18, 2021)",
        url="https://arxiv.org/abs/1904.08128",
        year=2021,
        task="segmentation",
        dims=(2, 3),
        supervision="full",
        takes=("images", "labels"),
        gives=("labels", "probability"),
        claim="A U-Net whose depth, patch, spacing and normalisation follow the data is hard to beat.",
        baseline="a fixed MONAI BasicUNet recipe",
        evidence="contract",
        phantom="shapes-3d",
    ),
)
