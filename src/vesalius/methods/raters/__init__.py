"""Several annotators: what they disagree about is part of the answer. The papers' cards, pure data."""

from ...core.card import Card

CARDS: tuple[Card, ...] = (
    Card(
        slug="curvas",
        title="CURVAS: calibration and volume against several raters",
        family="raters",
        kind="protocol",
        homes=("vesalius.methods.raters.curvas:CurvasUNet", "vesalius.metrics.curvas:score", "vesalius.datasets.curvas:open_curvas"),
        paper="Riera-Marin et al.: Calibration and Uncertainty for multiRater Volume Assessment in multiorgan Segmentation (CURVAS) "
        "challenge results (2025)",
        url="https://arxiv.org/abs/2505.08685",
        year=2025,
        task="segmentation and its probabilities, measured against every rater",
        dims=(2, 3),
        supervision="full",
        takes=("images",),
        learns=("labels",),
        gives=("labels", "probability"),
        claim="Of predictors that decide alike, the protocol prefers the one whose probabilities are right as often as they say.",
        baseline="the same network without temperature scaling, and one made overconfident",
        phantom="torso-ct?raters=3",
        deviations=("the temperature is fitted on the validation cases after training",),
    ),
    Card(
        slug="pulaski",
        title="PULASki: samples whose set is near the set of the raters' masks",
        family="raters",
        kind="method",
        homes=(
            "vesalius.methods.raters.pulaski:PULASki",
            "vesalius.networks.prob_unet:ProbabilisticUNet",
            "vesalius.objectives.set_distance:energy_distance",
        ),
        paper="Chatterjee et al.: PULASki: Learning inter-rater variability using statistical distances to improve probabilistic "
        "segmentation (2023)",
        url="https://arxiv.org/abs/2312.15686",
        year=2023,
        task="a distribution over masks, learnt from several raters",
        dims=(2, 3),
        supervision="full",
        takes=("images",),
        learns=("labels",),
        gives=("labels", "probability", "samples", "uncertainty"),
        claim="Samples trained by their statistical distance to the set of raters cover what raters say better than by cross-entropy.",
        baseline="the same probabilistic U-Net trained by cross-entropy with one rater at a time",
        phantom="shapes-2d?raters=3",
        weights="none",
        deviations=("Adam (as published), no averaged weights", "Dice is in no loss: a distance between sets stands in its place"),
    ),
)
