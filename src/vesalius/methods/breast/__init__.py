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
)
