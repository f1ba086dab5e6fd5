"""What the pictures of a method contain."""

from types import SimpleNamespace

import pytest
import torch
from cells import batch_for, build, generator, network_for
from made_data import made_crop

from ssl_pretrain.functional.fusion import fuse
from ssl_pretrain.methods import METHODS
from ssl_pretrain.report.pictures import draw_picture
from ssl_pretrain.training import display
from ssl_pretrain.training.display import CANDIDATES, GALLERY, NEIGHBOURS, QUERIES, Pictures, neighbours


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


@pytest.mark.parametrize("method", METHODS)
def test_the_picture_of_a_run_is_made_of_one_sample(method, tmp_path, monkeypatch):
    made = build(method, network_for(method)).eval()
    batch, views = batch_for(made), made.sample_views
    names = [str(view * (not views.together)) for view in range(views.count)]
    sample = [made_crop(batch["image"][v], v)._replace(case=f"case {name}") for v, name in enumerate(names)]
    trainer = SimpleNamespace(
        is_global_zero=True, current_epoch=2, max_epochs=9, datamodule=SimpleNamespace(val_crops=[sample] * CANDIDATES)
    )
    titles = []

    def draw(target, columns, *, title, spacing):
        titles.append((title, spacing))
        draw_picture(target, columns, title=title, spacing=spacing)

    monkeypatch.setattr(display, "draw_picture", draw)
    Pictures(tmp_path / "pictures", 3, (2.0, 1.0, 1.0)).on_validation_end(trainer, made)
    cases = ", ".join(f"case {name}" for name in dict.fromkeys(names))
    assert titles == [(f"{method}, epoch 3, {cases}", (2.0, 1.0, 1.0))]
    assert (tmp_path / "pictures" / "epoch_0003.png").stat().st_size > 5000


def test_neighbours_are_those_of_the_embeddings():
    made = build("SimCLR", "plans").eval()
    image = torch.randn(GALLERY, 2, *made.patch, generator=generator())
    samples = [[made_crop(crop, 2 * n)._replace(case=f"case {n}")] * 2 for n, crop in enumerate(image)]
    # The same image twice: each is the nearest of the other.
    samples[7] = [made_crop(3 * image[5], 14)._replace(case="case 7")] * 2
    samples[5] = [made_crop(3 * image[5], 10)._replace(case="case 5")] * 2
    with torch.no_grad():
        rows = neighbours(made, samples)
    assert [len(row) for row in rows] == [NEIGHBOURS + 1] * QUERIES
    queries = [caption for (caption, _), *_ in rows]
    assert {"case 5", "case 7"} <= set(queries), "those with the most contrast are asked for"
    (nearest, crop), *others = rows[queries.index("case 5")][1:]
    assert nearest == "case 7, 1.00"
    assert torch.equal(crop, samples[7][0].voxels)
    cosines = [float(caption.split(", ")[1]) for caption, _ in others]
    assert cosines == sorted(cosines, reverse=True)
    assert neighbours(build("MAE", "plans"), samples) is None
