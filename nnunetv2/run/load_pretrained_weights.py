"""What ``nnUNetv2_train … -pretrained_weights FILE`` runs with our trainers. Edit or replace this function freely."""

from pathlib import Path

from torch import distributed, nn

from ssl_pretrain.transfer.images import Images
from ssl_pretrain.transfer.load import load_pretrained
from ssl_pretrain.transfer.report import Report


def load_pretrained_weights(
    network: nn.Module, fname: str | Path, verbose: bool = False, images: Images | None = None
) -> Report:
    """Load ``fname`` into ``network`` in place and show what was done; with ``verbose``, tensor by tensor.

    Our trainers say in ``images`` what the network works on, for warnings and the channels of a cascade. They look at
    the report for what has to be trained from the first epoch; nnU-Net ignores it.
    """
    report = load_pretrained(network, fname, images=images)
    if not distributed.is_initialized() or distributed.get_rank() == 0:
        print(report if verbose else report.summary)  # noqa: T201 - nnU-Net's own function prints to the console, too
    return report
