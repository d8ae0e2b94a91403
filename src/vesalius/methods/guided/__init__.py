"""Segmentation guided by what is known beforehand: markers, priors, other organs."""

from ...core.card import Card

CARDS: tuple[Card, ...] = (
    Card(
        slug="sdl-seg",
        title="SDL-Seg: saliency of surgical markers as a second input channel",
        family="guided",
        kind="method",
        homes=("vesalius.methods.guided.sdl_seg:SDLSeg",),
        paper="Kazemimoghadam et al.: Saliency-Guided Deep Learning Network for Automatic Tumor Bed Volume Delineation in Post-operative "
        "Breast Irradiation (Phys. Med. Biol. 2021)",
        url="https://arxiv.org/abs/2105.02771",
        year=2021,
        task="segmentation",
        dims=(3,),
        supervision="full",
        takes=("images:CT", "roi:breast"),
        learns=("labels",),
        gives=("labels", "probability"),
        claim="Where a tumour bed hardly differs from gland, a channel that says how near the surgical markers are finds it.",
        baseline="unet on the CT alone; saliency of another patient as control",
        evidence="proof",
        phantom="tumour-bed",
    ),
    Card(
        slug="lung-morphology",
        title="Attention-gated U-Net with morphological clean-up",
        family="guided",
        kind="method",
        homes=("vesalius.methods.guided.lung_morphology:LungMorphology",),
        paper="Naqvi et al.: Improved lung segmentation based on U-Net architecture and morphological operations",
        url="https://arxiv.org/abs/2210.10545",
        year=2022,
        task="both lung fields in frontal chest radiographs",
        dims=(2,),
        supervision="full",
        takes=("images",),
        gives=("probability", "labels"),
        claim="gated skips and a morphological clean-up of the mask remove false lung that the plain U-Net leaves",
        baseline="unet; the same network without clean-up",
        phantom="chest-radiograph",
        deviations=("the mask is cleaned on the prepared grid (opening, closing, holes, two largest components), then restored",),
    ),
)
