"""Methods for breast examinations as a whole: tables, thermograms, mammographic views. The papers' cards, pure data."""

from ...core.card import Card

CARDS: tuple[Card, ...] = (
    Card(
        slug="breast-ml",
        title="Ordinary classifiers with searched options, for tables and thermal images",
        family="breast",
        kind="method",
        homes=("vesalius.methods.breast.breast_ml:BreastML",),
        paper="Zuluaga-Gomez: Breast Cancer Diagnosis Using Machine Learning Techniques (master's thesis, 2019); Zuluaga-Gomez et al.: A "
        "CNN-based methodology for breast cancer diagnosis using thermal images (2021)",
        url="https://arxiv.org/abs/1910.13757",
        year=2019,
        task="classification of patients by table or thermogram",
        dims=(0, 2),
        supervision="full",
        takes=("table", "images"),
        learns=("table",),
        gives=("table",),
        claim="Options found by a tree-structured Parzen estimator beat those found at random in as many trials, and these the defaults.",
        baseline="default options; random search of as many trials",
        phantom="polyp",
        deviations=("no ImageNet backbone; gaps in a table take the training median; validation cases are learnt from too",),
    ),
    Card(
        slug="two-view-mammo",
        title="Two-view mammography: from patches to whole pictures to both views of a breast",
        family="breast",
        kind="method",
        homes=("vesalius.methods.breast.two_view_mammo:TwoViewMammo", "vesalius.networks.efficientnet:EfficientNet"),
        paper="Petrini et al.: Breast Cancer Diagnosis in Two-View Mammography Using End-to-End Trained EfficientNet-Based Convolutional "
        "Network (IEEE Access 2022)",
        url="https://arxiv.org/abs/2110.01606",
        year=2022,
        task="classification of breasts by two mammographic views",
        dims=(2,),
        supervision="full",
        takes=("images",),
        learns=("labels", "table"),
        gives=("table",),
        claim="A network that sees both views at once, started from one of patches and then of single views, tells cancers better than the "
        "average of two single-view scores, and better than the same network from scratch.",
        baseline="average of two single-view scores; the same network from random weights",
        evidence="proof",
        phantom="mammogram",
        small={"size": (64, 48), "tile": 24, "width": 0.25, "depth": 0.3, "lr": 2e-3},
        weights="none; ImageNet weights of EfficientNet from a local safetensors file with timm's names (--set pretrained=FILE)",
        deviations=(
            "resizes every view to its own size (--set size) and mirrors both axes",
            "a batch of pairs holds half as many cases, and fewer where pictures are larger than the planned patch",
        ),
    ),
)
