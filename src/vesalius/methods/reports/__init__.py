"""Methods that read and write radiology reports: the papers' cards, pure data."""

from ...core.card import Card

CARDS: tuple[Card, ...] = (
    Card(
        slug="birads-bert",
        title="BI-RADS BERT: cut a report into its sections, then read each field where it stands",
        family="reports",
        kind="method",
        homes=("vesalius.methods.reports.birads_bert:BiradsBERT",),
        paper="Kuling, Curpen and Martel: BI-RADS BERT & Using Section Segmentation to Understand Radiology Reports (J. Imaging 2022)",
        url="https://arxiv.org/abs/2110.07552",
        year=2022,
        task="sections and fields of radiology reports",
        dims=(0,),
        supervision="full",
        takes=("text:report",),
        learns=("text", "table"),
        gives=("text", "table"),
        claim="Telling the section model what stands around a sentence labels sentences better, and a field is read better from its "
        "section than from the whole report.",
        baseline="the section model without auxiliary data; fields read from the whole report",
        phantom="reports",
        deviations=("a small encoder pre-trained on the training reports alone; iterations instead of epochs",),
    ),
)
