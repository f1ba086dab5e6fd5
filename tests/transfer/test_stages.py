"""Stages of U-Nets of different depth."""

import pytest

from ssl_pretrain.transfer.matching import at_their_resolution, number_of_stages, renumbered


@pytest.mark.parametrize(
    ("names", "stages"),
    [
        (["encoder.stages.0.0.convs.0.conv.weight", "encoder.stages.3.blocks.0.conv1.conv.weight"], 4),
        (["decoder.encoder.stages.2.blocks.11.conv1.conv.weight"], 3),
        (["decoder.stages.2.convs.0.conv.weight"], 4),
        (["decoder.transpconvs.4.weight", "encoder.stages.1.0.convs.0.conv.weight"], 6),
        (["conv_blocks_context.5.0.conv1.weight"], 6),
        (["upsample_layers.4.conv.weight"], 6),
        (["module.backbone.seg_outputs.1.weight"], 3),
        (["eva.blocks.7.norm1.weight", "my_encoder.stages.7.weight", "encoder1.layer.conv1.conv.weight"], 0),
        (["encoder.stem.convs.0.conv.weight"], 0),
        ([], 0),
    ],
)
def test_number_of_stages(names, stages):
    assert number_of_stages(names) == stages


@pytest.mark.parametrize(
    ("name", "stages", "wanted", "expected"),
    [
        ("encoder.stages.2.0.convs.0.conv.weight", 4, 6, "encoder.stages.2.0.convs.0.conv.weight"),
        ("encoder.stages.5.0.convs.0.conv.weight", 6, 4, None),
        ("decoder.encoder.stages.5.0.convs.0.conv.weight", 6, 4, None),
        ("decoder.stages.0.convs.1.conv.bias", 4, 6, "decoder.stages.2.convs.1.conv.bias"),
        ("decoder.transpconvs.4.weight", 6, 4, "decoder.transpconvs.2.weight"),
        ("decoder.transpconvs.1.weight", 6, 4, None),
        ("decoder.seg_layers.2.weight", 4, 12, "decoder.seg_layers.10.weight"),
        ("conv_blocks_context.3.0.conv1.weight", 6, 4, "conv_blocks_context.3.0.conv1.weight"),
        ("conv_blocks_context.4.0.conv1.weight", 6, 4, None),
        ("conv_blocks_localization.4.0.conv1.weight", 6, 4, "conv_blocks_localization.2.0.conv1.weight"),
        ("upsample_layers.0.conv.weight", 6, 4, None),
        ("seg_outputs.3.bias", 6, 6, "seg_outputs.3.bias"),
        ("encoder.stem.convs.0.conv.weight", 6, 4, "encoder.stem.convs.0.conv.weight"),
    ],
)
def test_encoders_count_from_the_finest_and_decoders_from_the_coarsest(name, stages, wanted, expected):
    assert renumbered(name, stages, wanted) == expected


@pytest.mark.parametrize(("fewer", "more"), [(3, 4), (4, 6), (2, 5)])
def test_there_and_back_again(fewer, more):
    """Every stage of the smaller network has a place in the larger one, and only those do."""
    lists = ("decoder.stages", "decoder.transpconvs", "upsample_layers")
    small = [f"encoder.stages.{i}.w" for i in range(fewer)] + [f"{n}.{i}.w" for n in lists for i in range(fewer - 1)]
    large = [f"encoder.stages.{i}.w" for i in range(more)] + [f"{n}.{i}.w" for n in lists for i in range(more - 1)]
    there = [renumbered(name, fewer, more) for name in small]
    assert set(there) < set(large)
    assert [renumbered(name, more, fewer) for name in there] == small
    assert sum(renumbered(name, more, fewer) is not None for name in large) == len(small)


def test_names_of_what_is_no_u_net_stay():
    mapping = {"a": "eva.blocks.0.w", "b": "decoder.stages.0.w"}
    assert at_their_resolution(mapping, 0) == mapping
    assert at_their_resolution({"a": "eva.blocks.0.w"}, 4) == {"a": "eva.blocks.0.w"}
    assert at_their_resolution({"b": "decoder.stages.0.w"}, 3) == {"b": "decoder.stages.1.w"}
