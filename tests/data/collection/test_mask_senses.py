"""Which way round a mask is: said by the dataset, else by the collection, else not 0 counts; OpenMind has to say it."""

import json

import pytest

from ssl_pretrain.data.collection.flatten import image_cases
from ssl_pretrain.data.collection.model import AssociatedMasks, Collection, Image, read_collection
from ssl_pretrain.data.collection.writing import add_image, new_collection

BOTH = ["anonymization_mask", "anatomy_mask"]


def collection_of(tmp_path, name="Study", anatomy="body.nii.gz", anonymization="face.nii.gz"):
    collection = new_collection(7, name, tmp_path / "pretrain_data.json")
    masks = AssociatedMasks(anatomy_mask=anatomy, anonymization_mask=anonymization)
    for dataset in ("one", "two"):
        image = Image(name="a.nii.gz", image_path="a.nii.gz", modality="T1w", associated_masks=masks)
        add_image(collection, dataset, "sub-1", "ses-1", image)
    return collection


def inverted(collection):
    return [sorted(case.inverted) for case in image_cases(collection)]


def test_a_dataset_is_believed_before_the_collection_and_nobody_means_that_not_0_counts(tmp_path):
    collection = collection_of(tmp_path)
    assert inverted(collection) == [[], []]
    collection.inverted_masks = ["anatomy_mask"]
    assert inverted(collection) == [["anatomy"], ["anatomy"]]
    collection.datasets["two"].inverted_masks = []
    collection.datasets["one"].inverted_masks = BOTH
    assert inverted(collection) == [["anatomy", "anonymization"], []]


def test_what_is_said_is_written_and_read_and_nothing_is_written_where_nobody_says_it(tmp_path):
    collection = collection_of(tmp_path)
    assert "inverted_masks" not in json.dumps(collection.to_dict())
    collection.inverted_masks = ["anonymization_mask"]
    collection.datasets["two"].inverted_masks = []
    document = json.loads(json.dumps(collection.to_dict()))
    assert document["datasets"]["two"]["inverted_masks"] == []
    assert inverted(Collection.from_dict(document)) == [["anonymization"], []]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["anatomy"], "inverted_masks may name anonymization_mask and anatomy_mask, got 'anatomy'"),
        ([1], r"inverted_masks\[0\] must be text, got 1"),
        ("anatomy_mask", "inverted_masks must be a list"),
    ],
)
@pytest.mark.parametrize("place", ["", "datasets.one."])
def test_a_wrong_word_about_masks_is_named_with_its_place(tmp_path, value, message, place):
    document = collection_of(tmp_path).to_dict()
    (document["datasets"]["one"] if place else document)["inverted_masks"] = value
    file = tmp_path / "pretrain_data.json"
    file.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(ValueError, match=f"pretrain_data.json: {place}{message}"):
        read_collection(file)


@pytest.mark.parametrize("name", ["OpenMind", "Dataset007_OpenMind", "Part_of_OpenMind"])
def test_a_collection_of_openmind_that_does_not_say_it_is_refused(tmp_path, name):
    """Files of nnssl's, and ours of before, from which crops would be centred on air."""
    collection = collection_of(tmp_path, name)
    with pytest.raises(ValueError) as caught:
        image_cases(collection)
    assert str(caught.value) == (
        f"{tmp_path / 'pretrain_data.json'}: datasets.one.subjects.sub-1.sessions.ses-1.images[0] has an anatomy mask, "
        "and those of OpenMind are 1 in the background, which the file does not say. Make it again "
        '(nnUNetv2_convert_openmind --overwrite), or write at its top "inverted_masks": ["anatomy_mask"], or [] if '
        "yours are 1 in the anatomy."
    )
    for said in (["anatomy_mask"], []):
        collection.inverted_masks = said
        assert len(image_cases(collection)) == 2
    for nothing in (None, "", "nan"):
        assert len(image_cases(collection_of(tmp_path, name, anatomy=nothing))) == 2


def test_masks_that_are_called_like_each_other_are_one_warning(tmp_path, caplog):
    image_cases(collection_of(tmp_path, anatomy="anat/x__Data/fb_mask.nii.gz", anonymization="x/deface_mask.nii.gz"))
    image_cases(collection_of(tmp_path, anatomy="anon/body.nii.gz", anonymization=None))
    assert caplog.messages == []
    image_cases(collection_of(tmp_path, anatomy="x/deface_mask.nii.gz", anonymization="x/fb_mask.nii.gz"))
    assert caplog.messages == [
        "2 images name as their anatomy mask what is called like an anonymisation mask, e.g. "
        "datasets.one.subjects.sub-1.sessions.ses-1.images[0] (deface_mask.nii.gz). Are the two swapped? nnssl's "
        "preprocessing swaps them: its files __anat hold the anonymisation masks"
    ]
