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
)
