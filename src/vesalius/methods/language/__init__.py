"""Methods in which words choose what is segmented: the papers' cards, pure data."""

from ...core.card import Card

CARDS: tuple[Card, ...] = (
    Card(
        slug="lstm-fcn-language",
        title="Segmentation from natural language expressions: an LSTM's state at every cell of a fully convolutional net",
        family="language",
        kind="method",
        homes=("vesalius.methods.language.lstm_fcn_language:LSTMFCN",),
        paper="Hu, Rohrbach and Darrell: Segmentation from Natural Language Expressions (ECCV 2016)",
        url="https://arxiv.org/abs/1603.06180",
        year=2016,
        task="segmentation of what an expression means",
        dims=(2,),
        supervision="full",
        evidence="proof",
        takes=("images", "queries"),
        learns=("queries", "labels"),
        gives=("labels", "probability", "table"),
        claim="The expression's words, in their order, choose the object: which a net that reads nothing or a bag of words cannot do.",
        baseline="the same net without the expression; with a bag of its words; without coordinates",
        phantom="referring",
        small={"widths": (4, 8), "convs": (1, 1), "fc": 8, "features": 8, "embedding": 8, "hidden": 8, "mlp": 8, "lr": 5e-3},
        weights="none; ImageNet weights of VGG-16's convolutions from a local safetensors file (--set pretrained=FILE)",
        deviations=(
            "the whole image on a square grid is one window; no mirrored or rotated patches, which would make 'left' wrong",
            "a small VGG from scratch by default",
        ),
    ),
)
