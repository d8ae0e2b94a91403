"""Registration: pairs of images in, displacement fields out. The papers' cards, pure data."""

from ...core.card import Card

CARDS: tuple[Card, ...] = (
    Card(
        slug="tumor-preserving-registration",
        title="Preserving tumour volumes in unsupervised registration",
        family="registration",
        kind="method",
        homes=("vesalius.methods.registration.tumor_preserving_registration:TumorPreserving",),
        recipe={"network": "vesalius.networks.voxelmorph:VoxelMorph"},
        paper="Dong et al.: Preserving Tumor Volumes for Unsupervised Medical Image Registration (ICCV 2023)",
        url="https://arxiv.org/abs/2309.10153",
        year=2023,
        task="deformable registration of two patients, one of them with a tumour",
        dims=(2, 3),
        supervision="self",
        takes=("images:fixed", "images:moving"),
        learns=("labels: the organ of one template",),
        gives=("displacement", "images:warped", "images:mask"),
        claim="A tumour without a counterpart keeps its size, relative to its organ, while organs overlap as well as before.",
        baseline="its first stage (VoxelMorph by similarity alone); the hard mask",
        phantom="organ-pairs-2d",
        deviations=(
            "images are resized to one window instead of an affine network before the deformable one",
            "no augmentation: a pair is its own variation",
        ),
        small={"features": (4, 8), "refine": (8,), "lr": 1e-3},
    ),
)
