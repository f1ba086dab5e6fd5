"""Teachers: running averages of a network (Tarvainen & Valpola 2017, arXiv 1703.01780)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Teacher(AveragedModel):
    """Running average of a network, parameters and buffers alike; it gets no gradient.

    Args:
        network: to begin as a copy of.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, use_buffers=True)
        self.requires_grad_(False)

    def follow(self, network: nn.Module, decay: float) -> None:
        """Move towards a network: ``decay`` of the average is kept. What is no floating point number is copied.

        The network may have more than the average, which goes by the names of parameters and buffers.
        """
        # Not AveragedModel.update_parameters: it asks the GPU twice whether this is the first update.
        followed = _tensors(network)
        pairs = [(tensor, followed[name]) for name, tensor in _tensors(self.module).items()]
        averaged, current = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        get_ema_multi_avg_fn(decay)(list(averaged), list(current), None)  # type: ignore[no-untyped-call]
        for counter, value in pairs:
            if not counter.is_floating_point():
                counter.copy_(value)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, without gradient."""
    return {name: t.detach() for name, t in (*module.named_parameters(), *module.named_buffers())}
