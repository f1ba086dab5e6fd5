"""The phases of a schedule in nnU-Net's ``progress.png``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ssl_pretrain.finetuning.schedules import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextmanager
def phases_in_figures(phases: Sequence[Phase], log: Callable[[str], None]) -> Iterator[None]:
    """Within this context, every figure that is saved shows the phases first.

    nnU-Net makes, saves and closes its figure in one function, so saving is where one can step in.

    Args:
        phases: of the run; nothing is drawn where there is but one.
        log: told if drawing fails, which does not stop a training.
    """
    from matplotlib.figure import Figure

    original = Figure.savefig

    def savefig(figure: Figure, *args: Any, **kwargs: Any) -> Any:
        try:
            draw_phases(figure, phases)
        except Exception as error:  # a picture is not worth a training
            log(f"The phases are missing in progress.png: {error!r}")
        return original(figure, *args, **kwargs)

    if len(phases) > 1:
        Figure.savefig = savefig  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Figure.savefig = original  # type: ignore[method-assign]


def draw_phases(figure: Figure, phases: Sequence[Phase]) -> None:
    """Draw where phases begin, with their names and a grey band where the encoder is frozen, into a figure by epoch.

    Args:
        figure: its limits stay as they are, so phases that are to come are not in it.
        phases: of the run.
    """
    drawn: list[Axes] = []
    for axes in figure.axes:
        # A second scale on the right lies on axes of the same place.
        if all(axes.get_position().bounds != other.get_position().bounds for other in drawn):
            _draw(axes, phases)
            drawn.append(axes)


def _draw(axes: Axes, phases: Sequence[Phase]) -> None:
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    for phase in phases:
        # Epochs are points; a phase begins halfway between its first and the one before.
        start, end = max(phase.start - 0.5, left), min(phase.end - 0.5, right)
        if start >= end:
            continue
        if phase.frozen:
            axes.axvspan(start, end, color="0.5", alpha=0.25, linewidth=0, zorder=0)
        if phase.start > 0:
            axes.axvline(start, color="k", linestyle="--", linewidth=2, zorder=1)
        axes.annotate(
            phase.name,
            (start, 0.98),
            xycoords=axes.get_xaxis_transform(),
            xytext=(4, 0),
            textcoords="offset points",
            rotation="vertical",
            verticalalignment="top",
            fontsize=20,
        )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
