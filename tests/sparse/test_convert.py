import copy

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from ssl_pretrain.sparse import SparseMask, convert
from ssl_pretrain.sparse.layers import MaskedConv3d, MaskedInstanceNorm3d

KWARGS = {
    "n_stages": 3,
    "features_per_stage": [4, 8, 16],
    "conv_op": nn.Conv3d,
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "n_conv_per_stage_decoder": [1, 1],
    "conv_bias": True,
    "norm_op": nn.InstanceNorm3d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.LeakyReLU,
    "nonlin_kwargs": {"inplace": True},
}


def plain() -> PlainConvUNet:
    return PlainConvUNet(2, num_classes=3, n_conv_per_stage=[2, 2, 2], deep_supervision=True, **KWARGS)


def test_parameters_keys_and_aliases_survive():
    network = plain()
    keys, ids = list(network.state_dict()), {k: id(p) for k, p in network.named_parameters(remove_duplicate=False)}
    block = network.encoder.stages[0][0].convs[0]
    convert(network.encoder, SparseMask())
    assert list(network.state_dict()) == keys
    assert {k: id(p) for k, p in network.named_parameters(remove_duplicate=False)} == ids
    assert block.conv is block.all_modules[0]
    assert type(block.conv) is MaskedConv3d
    assert type(block.norm) is MaskedInstanceNorm3d
    assert not any(isinstance(m, MaskedConv3d) for m in network.decoder.transpconvs.modules())


@pytest.mark.parametrize(
    "build", [plain, lambda: ResidualEncoderUNet(2, num_classes=3, n_blocks_per_stage=2, **KWARGS)]
)
def test_an_encoder_with_everything_visible_gives_the_dense_maps(build):
    torch.manual_seed(0)
    network = build().eval()
    x = torch.randn(2, 2, 8, 16, 16)
    dense = network.encoder(x)
    mask = SparseMask()
    convert(network.encoder, mask)
    with mask.visible(torch.ones(2, 4, 4, 4, dtype=torch.bool)):
        sparse = network.encoder(x)
    for ours, theirs in zip(sparse, dense, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_deep_copy_has_a_mask_of_its_own():
    mask = SparseMask()
    layer = nn.Sequential(nn.Conv3d(1, 1, 3, padding=1), nn.InstanceNorm3d(1))
    convert(layer, mask)
    twin = copy.deepcopy(layer)
    assert twin[0].sparse_mask is twin[1].sparse_mask
    assert twin[0].sparse_mask is not mask
    with mask.visible(torch.ones(1, 2, 2, 2, dtype=torch.bool)):
        with pytest.raises(RuntimeError, match="without a mask"):
            twin(torch.ones(1, 1, 4, 4, 4))
        assert layer(torch.ones(1, 1, 4, 4, 4)).shape == (1, 1, 4, 4, 4)


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Conv1d(1, 1, 1), "Conv1d"),
        (nn.InstanceNorm3d(1, track_running_stats=True), "InstanceNorm3d"),
        (nn.AdaptiveAvgPool3d(2), "AdaptiveAvgPool3d"),
    ],
)
def test_what_cannot_be_masked_is_named_and_nothing_is_changed(layer, name):
    network = nn.Sequential(nn.Conv3d(1, 1, 3), layer)
    with pytest.raises(TypeError, match=rf"1 \({name}\).*Supported: Conv3d"):
        convert(network, SparseMask())
    assert type(network[0]) is nn.Conv3d


def test_a_convolution_with_its_own_forward_is_not_silently_replaced():
    class Own(nn.Conv3d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    with pytest.raises(TypeError, match=r"\(Own\)"):
        convert(nn.Sequential(Own(1, 1, 1)), SparseMask())
