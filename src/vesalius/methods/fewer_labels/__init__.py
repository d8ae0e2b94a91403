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
    Card(
        slug="simple-dcemri",
        title="SimPLe: from extreme points to masks by likeness of features",
        family="fewer-labels",
        kind="method",
        homes=(
            "vesalius.methods.fewer_labels.simple_dcemri:SimPLe",
            "vesalius.ops.extreme:mask_from_extremes",
            "vesalius.objectives.voxel_contrast:spread",
        ),
        paper="Zhong, Wang: SimPLe: Similarity-Aware Propagation Learning for Weakly-Supervised Breast Cancer Segmentation in DCE-MRI "
        "(MICCAI 2023)",
        url="https://arxiv.org/abs/2306.16714",
        year=2023,
        task="segmentation",
        dims=(2, 3),
        supervision="weak",
        takes=("images",),
        learns=("points:extreme", "labels"),
        gives=("labels", "probability"),
        claim="Contrast between sure voxels, then labels spread by likeness, then training afresh each improve on a mask from six points.",
        baseline="the first stage without contrast; full supervision as the ceiling",
        phantom="shapes-3d",
        weights="none",
        deviations=(
            "labels of training cases serve only to place extreme points where a case has none (option simulate), and are then dropped",
            "half of a batch is centred on objects, half on background (the published scheme)",
            "SGD with polynomial decay, no averaged weights (as published; option optimizer)",
            "the plan's U-Net without deep supervision for the paper's",
        ),
    ),
)
