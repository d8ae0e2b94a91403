"""Methods for one organ or finding, whole pipelines among them: the papers' cards, pure data."""

from ...core.card import Card

CARDS: tuple[Card, ...] = (
    Card(
        slug="tdsc-abus",
        title="TDSC-ABUS: find, outline and classify a tumour in 3D breast ultrasound",
        family="anatomy",
        kind="protocol",
        homes=(
            "vesalius.methods.anatomy.tdsc_abus:TumourPipeline",
            "vesalius.metrics.tdsc_abus:score",
            "vesalius.datasets.tdsc_abus:open_tdsc_abus",
        ),
        paper="Luo et al.: Tumor Detection, Segmentation and Classification Challenge on Automated 3D Breast Ultrasound: The TDSC-ABUS "
        "Challenge (2025)",
        url="https://arxiv.org/abs/2501.15588",
        year=2025,
        task="detection, segmentation and classification of a lesion",
        dims=(3,),
        supervision="full",
        takes=("images",),
        learns=("labels", "table:malignant"),
        gives=("probability", "labels", "boxes:lesion", "table:malignant"),
        claim="Scored components of a segmenter taught on lesion-centred patches detect, and their crops tell malignant from benign.",
        baseline="patches drawn anywhere; components without a score; a classifier that sees the whole volume",
        parts={"segmenter": "unet"},
        phantom="abus",
        deviations=(
            "the crop's classifier is a logistic regression on measured features instead of a 3D network",
            "only the best component stays in the mask",
        ),
    ),
    Card(
        slug="image-volume-ssl",
        title="Image-volume SSL: one encoder from unlabelled pictures and volumes",
        family="anatomy",
        kind="method",
        homes=(
            "vesalius.methods.anatomy.image_volume_ssl:ImageVolumeSSL",
            "vesalius.networks.slice_unet:SliceUNet",
            "vesalius.networks.blocks.deformable:DeformableTransformer",
            "vesalius.objectives.clustering:ClusterAgreement",
        ),
        paper="Nguyen et al.: Joint Self-Supervised Image-Volume Representation Learning with Intra-Inter Contrastive Clustering "
        "(AAAI 2023)",
        url="https://arxiv.org/abs/2212.01893",
        year=2023,
        task="self-supervised pretraining on 2D and 3D, then segmentation",
        dims=(2, 3),
        supervision="self",
        takes=("images",),
        learns=("labels",),
        gives=("labels", "probability"),
        claim="Clusters of slices, guessed slices and clusters of volumes, learnt without labels, make few labels go further.",
        baseline="the same network from random weights",
        phantom="shapes-3d",
        weights="none; those of another of its runs, 2D or 3D (--set pretrained=RUN)",
        small={
            "dim": 16,
            "depth": 1,
            "heads": 2,
            "hidden": 16,
            "projection": 8,
            "clusters": 2,
            "slice_clusters": 4,
            "slice_batch": 4,
            "rounds": 4,
        },
        deviations=(
            "half of the budget goes to stages without labels (option pretrain), in which unlabelled cases take part",
            "a 2D U-Net slice by slice with the plan's in-plane levels, without deep supervision",
        ),
    ),
)
