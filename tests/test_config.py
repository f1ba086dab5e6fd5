import json

import pytest

from ssl_pretrain.config import PretrainConfig, convert
from ssl_pretrain.methods import METHODS, AnatoMaskConfig, SparKConfig
from ssl_pretrain.networks.request import settings_suffix


def config(**changes) -> PretrainConfig:
    return PretrainConfig(dataset="4", **changes)


@pytest.mark.parametrize("method", METHODS)
def test_json_and_back_is_the_identity(method, tmp_path):
    made = config(
        method=method, patch_size=(40, 56, 40), output_folder="x", datasets=("4", "5"), filters=("quality<=3",)
    )
    made = made.with_settings({"betas": "0.8 0.9", "sample_in": "anatomy"})
    if hasattr(made.task, "mask_cell"):
        made = made.with_settings({"mask_cell": "8 8 8"})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(made.to_dict()))
    assert PretrainConfig.from_file(file) == made


def test_published_defaults():
    spark, anatomask = SparKConfig(), AnatoMaskConfig()
    assert (spark.lr, anatomask.lr) == (2e-4, 1e-4)
    for task in (spark, anatomask):
        assert (task.betas, task.weight_decay, task.clip) == ((0.9, 0.999), 1e-5, 12.0)
        assert [task.warmup("convolutional", epochs) for epochs in (1000, 20)] == [20, 2]
        assert (task.warmup_start_lr, task.mask_ratio) == (1e-6, 0.6)
    assert (anatomask.ema_start, anatomask.ema_end, anatomask.hard_share) == (0.999, 0.9999, 0.5)
    assert (config().epochs, config().iters, config().val_iters) == (1000, 250, 50)


@pytest.mark.parametrize("method", METHODS)
def test_the_published_recipe_takes_every_published_value_that_is_not_set(method):
    ours, published = config(method=method), config(method=method, recipe="published")
    declared = METHODS[method].Config.published
    for part in ("task", "crops"):
        before, after = vars(getattr(ours, part)), vars(getattr(published, part))
        assert {n: v for n, v in after.items() if v != before[n]} == {n: v for n, v in declared.items() if n in after}
    assert published.recipe_text().startswith("recipe published")
    for name, value in declared.items():
        assert (name in vars(ours.task)) != (name in vars(ours.crops))
        assert f"{name}={value}" in published.recipe_text()
    assert PretrainConfig.from_dict({"dataset": "4", "method": method, "recipe": "published", "task": {}}) == published
    assert PretrainConfig.from_dict(published.to_dict()) == published


def test_what_is_set_wins_over_the_published_recipe():
    made = PretrainConfig.from_dict({"dataset": "4", "recipe": "published", "task": {"decoder": "slim"}})
    assert (made.task.decoder, made.task.teacher, made.crops.oversample_foreground) == ("slim", "full", 0.33)
    assert PretrainConfig.from_dict(made.to_dict()) == made
    assert made.with_settings({"teacher": "coarse"}).task.teacher == "coarse"
    with pytest.raises(ValueError, match="recipe must be one of default, published, got 'theirs'"):
        config(recipe="theirs")


def test_a_stored_run_is_what_it_was_before_there_were_recipes_and_coarse_teachers(tmp_path):
    content = config().with_settings({"decoder": "spark"}).to_dict()
    del content["recipe"], content["task"]["teacher"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    made = PretrainConfig.from_file(tmp_path / "config.json")
    assert (made.recipe, made.task.decoder, made.task.teacher) == ("default", "spark", "full")


def test_the_method_decides_the_type_of_its_settings():
    assert isinstance(config(method="SparK").task, SparKConfig)
    assert isinstance(config().task, AnatoMaskConfig)
    with pytest.raises(ValueError, match="SparK is configured by SparKConfig, got AnatoMaskConfig"):
        config(method="SparK", task=AnatoMaskConfig())


def test_settings_reach_every_field_of_method_and_crops():
    base = config()
    for part in (base.task, base.crops):
        for name in vars(part):
            value = getattr(part, name)
            text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert base.with_settings({name: text}) == base, name
    changed = base.with_settings({"oversample_foreground": "0.33", "difficulty": "reference", "mask_cell": "8"})
    assert changed.crops.oversample_foreground == 0.33
    assert changed.task.difficulty == "reference"
    assert changed.task.mask_cell == (8, 8, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ration": "0.5"}, "Unknown setting 'mask_ration' of AnatoMask. There: .*mask_ratio"),
        ({"mask_ratio": "many"}, "Setting mask_ratio='many' is not a number"),
        ({"teacher_masks": "1.5"}, "Setting teacher_masks='1.5' is not a whole number"),
        ({"difficulty": "hard"}, "is not one of intensity, normalized, reference"),
        ({"mask_cell": "8 8"}, "Setting mask_cell='8 8' is not 3 numbers or None"),
        ({"mask_ratio": "1"}, "strictly between 0 and 1"),
    ],
)
def test_wrong_settings_are_refused_with_what_there_is(settings, message):
    with pytest.raises(ValueError, match=message):
        config().with_settings(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size is too small: 0"),
        ({"device": "tpu"}, "device must be one of cuda, cpu, mps, got 'tpu'"),
        ({"precision": "64"}, "precision must be one of auto, 32, bf16, 16"),
        ({"method": "MAE3000"}, "Unknown method 'MAE3000'"),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_a_wrong_size_of_a_network_is_named():
    with pytest.raises(ValueError, match=r"Setting network_settings\.depth='1.5' is not a whole number"):
        PretrainConfig.from_dict({"dataset": "4", "network_settings": {"depth": "1.5"}})


def test_unknown_keys_in_a_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Unknown settings epoch"):
        PretrainConfig.from_dict({"dataset": "4", "epoch": 3})
    with pytest.raises(ValueError, match="Unknown settings size of CropConfig"):
        PretrainConfig.from_dict({"dataset": "4", "crops": {"size": 3}})
    with pytest.raises(ValueError, match="does not say which dataset"):
        PretrainConfig.from_dict({})
    with pytest.raises(FileNotFoundError, match="does not exist"):
        PretrainConfig.from_file(tmp_path / "none.json")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=r"list\.json: the whole file: Input should be a valid dictionary"):
        PretrainConfig.from_file(tmp_path / "list.json")


def test_a_whole_number_is_no_boolean_and_text_is_text():
    assert convert("x", "true", bool) is True
    with pytest.raises(ValueError, match="is not a whole number"):
        convert("x", True, int)
    assert convert("x", "None", int | None) is None


def test_numbers_stand_for_dataset_and_fold():
    made = PretrainConfig(dataset=4, fold=0)
    assert (made.dataset, made.fold) == ("4", "0")
    with pytest.raises(ValueError, match="patch_size must be one or three positive whole numbers"):
        config(patch_size=(0, 16, 16))


def test_differences_leave_out_what_may_change():
    a = config(epochs=4, num_workers=1)
    assert a.differences(config(epochs=4, num_workers=8, picture_every=1)) == {}
    assert a.differences(config(epochs=5).with_settings({"lr": "0.1"})) == {"epochs": (4, 5), "lr": (1e-4, 0.1)}


@pytest.mark.parametrize("fold", ["foo", "-1", "../../x", "²", ""])
def test_what_is_no_fold_is_refused_before_anything_is_looked_for(fold):
    with pytest.raises(ValueError, match="FOLD must be 'all' or a number from 0 on"):
        config(fold=fold)


def test_settings_of_a_network_have_the_types_that_it_takes():
    given = {"depths": "2,2,6,2", "normalize": "false", "downsample": "mergingv2", "heads": "3"}
    config = PretrainConfig.from_dict({"dataset": "4", "network_settings": given})
    settings = {"depths": (2, 2, 6, 2), "normalize": False, "downsample": "mergingv2", "heads": 3}
    assert config.network_settings == settings
    assert PretrainConfig.from_dict(config.to_dict()) == config
    suffix = "_depths2-2-6-2_downsamplemergingv2_heads3_normalizeFalse"
    assert settings_suffix(settings) == settings_suffix(config.to_dict()["network_settings"]) == suffix
