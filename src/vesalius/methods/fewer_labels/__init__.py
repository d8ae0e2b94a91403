"""Learning from few labels: pseudo-labels, consistency, noisy and partial annotation."""

from ...core.card import Card

CARDS = (
    Card(
        slug="tracoco",
        title="TraCoCo: translation-consistent co-training of two networks",
        family="fewer-labels",
        kind="method",
        homes=("vesalius.methods.fewer_labels.tracoco:TraCoCo",),
        paper="Liu et al.: Translation Consistent Semi-supervised Segmentation for 3D Medical Images (2022)",
        url="https://arxiv.org/abs/2203.14523",
        year=2022,
        task="segmentation",
        dims=(2, 3),
        supervision="semi",
        takes=("images",),
        learns=("labels",),
        gives=("labels", "probability"),
        claim="Equal answers on the overlap of two crops and learning from the other network's confident answers beat co-training by MSE.",
        baseline="unet on the labelled cases; co-training with MSE and without translation",
        phantom="moving-context",
        deviations=(
            "batch: half labelled, half unlabelled, two crops of each (the published scheme)",
            "mirroring and quarter turns instead of rotation, scaling and bending, so that crops overlap in whole voxels",
            "SGD with polynomial decay, no averaged weights (as published; option optimizer)",
            "the plan's U-Net for the paper's V-Net (option backbone)",
        ),
    ),
)
