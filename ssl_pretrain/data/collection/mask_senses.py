"""Which value of a mask counts. What is not 0, unless the collection says that a mask is the other way round."""

from __future__ import annotations

import logging
import re

from ssl_pretrain.data.cases import MaskKind
from ssl_pretrain.data.collection.model import Collection, Dataset
from ssl_pretrain.data.collection.paths import no_path

OPENMIND = "openmind"
"""In the name of a collection of nnssl's or ours that was made of OpenMind's table."""

_ANONYMISATION = re.compile("deface|anon", re.IGNORECASE)

logger = logging.getLogger(__name__)


def inverted_in(collection: Collection, dataset: Dataset) -> frozenset[MaskKind]:
    """The masks of a dataset's images in which 0 marks, and not what is not 0."""
    said = collection.inverted_masks if dataset.inverted_masks is None else dataset.inverted_masks
    kinds: dict[str, MaskKind] = {"anonymization_mask": "anonymization", "anatomy_mask": "anatomy"}
    return frozenset(kinds[name] for name in said or ())


def check_senses(collection: Collection) -> None:
    """Refuse anatomy masks of OpenMind of which nobody says which way round they are; warn of masks that look swapped.

    OpenMind's are 1 in the background. Files of nnssl, and ours before they had ``inverted_masks``, do not say so.

    Raises:
        ValueError: names the file, the image and what to write.
    """
    swapped = []
    for dataset, _, _, where, image in collection.images():
        masks = image.associated_masks
        if masks is None or masks.anatomy_mask is None or no_path(masks.anatomy_mask):
            continue
        silent = collection.inverted_masks is None and collection.datasets[dataset].inverted_masks is None
        if silent and OPENMIND in collection.collection_name.casefold():
            raise ValueError(
                f"{collection.file or 'The collection'}: {where} has an anatomy mask, and those of OpenMind are 1 in "
                "the background, which the file does not say. Make it again (nnUNetv2_convert_openmind --overwrite), "
                'or write at its top "inverted_masks": ["anatomy_mask"], or [] if yours are 1 in the anatomy.'
            )
        anatomy, anonymisation = (
            (path or "").rpartition("/")[2] for path in (masks.anatomy_mask, masks.anonymization_mask)
        )
        if _ANONYMISATION.search(anatomy) and not _ANONYMISATION.search(anonymisation):
            swapped.append(f"{where} ({anatomy})")
    if swapped:
        logger.warning(
            "%d images name as their anatomy mask what is called like an anonymisation mask, e.g. %s. Are the two "
            "swapped? nnssl's preprocessing swaps them: its files __anat hold the anonymisation masks",
            len(swapped),
            swapped[0],
        )
