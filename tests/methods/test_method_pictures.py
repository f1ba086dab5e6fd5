"""What the pictures of a method contain."""

from types import SimpleNamespace

import pytest
import torch
from cells import batch_for, build, generator

from ssl_pretrain.data.batches import Sample
from ssl_pretrain.functional.fusion import fuse
from ssl_pretrain.report.pictures import draw_picture
from ssl_pretrain.training import display
from ssl_pretrain.training.display import CANDIDATES, Pictures


def columns_of(made, batch, seed: int = 0):
    """The columns of a picture by their headings, and all of them."""
    with torch.no_grad():
        columns = made.panels(batch, generator(seed))
    return {column.heading: column.values for column in columns}, columns


def test_models_genesis_shows_the_error_of_every_voxel():
    made = build("ModelsGenesis", "plans").eval()
    batch = batch_for(made)
    shown, columns = columns_of(made, batch)
    assert [(column.heading, column.kind) for column in columns] == [
        ("original", "image"),
        ("corrupted input", "image"),
        ("restored", "image"),
        ("absolute error", "error"),
    ]
    assert torch.equal(shown["original"], batch["image"][0])
    with torch.no_grad():
        restored = made.network(shown["corrupted input"][None])[0]
    torch.testing.assert_close(shown["restored"], restored)
    torch.testing.assert_close(shown["absolute error"], (restored - batch["image"][0]).abs())
    assert (shown["absolute error"] > 0).float().mean() > 0.99


def test_the_crop_of_models_genesis_is_always_corrupted_unless_nothing_is():
    usual = build("ModelsGenesis", "plans").eval()
    batch = batch_for(usual)
    for seed in range(20):
        shown, _ = columns_of(usual, batch, seed)
        assert (shown["corrupted input"] != shown["original"]).float().mean() > 0.5
    nothing = build("ModelsGenesis", "plans", shuffle_p=0.0, intensity_p=0.0, paint_p=0.0).eval()
    shown, _ = columns_of(nothing, batch)
    assert torch.equal(shown["corrupted input"], shown["original"])


@pytest.mark.parametrize("classes", [3, 5])
def test_volume_fusion_shows_true_and_predicted_classes(classes):
    made = build("VolumeFusion", "plans", classes=classes).eval()
    batch = batch_for(made)
    foreground, background = batch["image"][0], batch["image"][1]
    shown, columns = columns_of(made, batch)
    assert [(column.heading, column.kind, column.classes) for column in columns] == [
        ("foreground", "image", 0),
        ("fused input", "image", 0),
        ("label", "classes", classes),
        ("predicted label", "classes", classes),
    ]
    own = made.sample_generators(batch, generator())[0]
    fused, labels = fuse(foreground[None], background[None], own, made.config)
    assert torch.equal(shown["foreground"], foreground)
    assert torch.equal(shown["fused input"], fused[0])
    assert torch.equal(shown["label"], labels)
    everywhere = labels.expand_as(fused[0])
    for label, image in ((0, background), (classes - 1, foreground)):
        assert torch.equal(fused[0][everywhere == label], image[everywhere == label])
    with torch.no_grad():
        assert torch.equal(shown["predicted label"], made.network(fused).argmax(1))
    assert set(labels.unique().tolist()) <= set(range(classes))


@pytest.mark.parametrize(("method", "cases"), [("MAE", "a"), ("ModelsGenesis", "a"), ("VolumeFusion", "a, b")])
def test_the_picture_of_a_run_is_made_of_as_many_crops_as_a_sample_has(method, cases, tmp_path, monkeypatch):
    made = build(method, "plans").eval()
    image = batch_for(made)["image"]
    pair = [Sample(image[0], None, False, "a", 0), Sample(image[1] / 2, None, False, "b", 1)]
    crops = pair * (CANDIDATES // 2)
    trainer = SimpleNamespace(
        is_global_zero=True, current_epoch=2, max_epochs=9, datamodule=SimpleNamespace(val_crops=crops)
    )
    titles = []

    def draw(target, columns, *, title, spacing):
        titles.append((title, spacing))
        draw_picture(target, columns, title=title, spacing=spacing)

    monkeypatch.setattr(display, "draw_picture", draw)
    Pictures(tmp_path / "pictures", 3, (2.0, 1.0, 1.0)).on_validation_end(trainer, made)
    assert titles == [(f"{method}, epoch 3, {cases}", (2.0, 1.0, 1.0))]
    assert (tmp_path / "pictures" / "epoch_0003.png").stat().st_size > 5000
