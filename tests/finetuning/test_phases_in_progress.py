"""The phases in ``progress.png``."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_trainers import log, maker, run_epochs
from matplotlib.figure import Figure
from nnunetv2.training.logging.nnunet_logger import LocalLogger

from ssl_pretrain.finetuning.progress import draw_phases, phases_in_figures
from ssl_pretrain.finetuning.schedules import Schedule, course_of

SAWTOOTH = course_of(Schedule("sawtooth"), 40).phases


@pytest.fixture
def figure():
    """Two panels over 12 epochs, the first with a second scale, as nnU-Net draws them."""
    made, (first, second) = plt.subplots(2, 1)
    for axes in (first, first.twinx(), second):
        axes.plot(range(12), range(12))
    yield made
    plt.close(made)


def test_phases_so_far_are_drawn_once_per_panel_and_the_limits_stay(figure):
    limits = [(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes]
    draw_phases(figure, SAWTOOTH)
    assert [(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes] == limits
    names = [[text.get_text().strip() for text in axes.texts] for axes in figure.axes]
    assert names[0] == [phase.name for phase in SAWTOOTH]
    assert sorted(map(len, names)) == [0, 4, 4]
    assert [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in figure.axes[0].patches] == [
        (pytest.approx(max(-0.5, limits[0][0][0])), 1.5),
        (1.5, 3.5),
    ]


def test_a_phase_that_is_to_come_is_not_drawn(figure):
    draw_phases(figure, course_of(Schedule("frozen", 500), 1000).phases)
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["encoder frozen, warm-up"]


def nnunets_logger():
    logger = LocalLogger()
    for key in logger.my_fantastic_logging:
        logger.my_fantastic_logging[key] = [float(epoch) for epoch in range(12)]
    return logger


def picture(folder):
    return plt.imread(folder / "progress.png")[..., :3]


def test_nnunets_own_figure_gets_them_and_no_other(tmp_path):
    told = []
    for name, phases in (("plain", SAWTOOTH[:1]), ("bands", SAWTOOTH)):
        (tmp_path / name).mkdir()
        with phases_in_figures(phases, told.append):
            nnunets_logger().plot_progress_png(str(tmp_path / name))
    plain, bands = picture(tmp_path / "plain"), picture(tmp_path / "bands")
    assert plain.shape == bands.shape
    changed = np.abs(plain - bands).max(-1) > 0.02
    # In each of the three panels, and nowhere near the whole picture.
    assert all(third.mean() > 0.05 for third in np.array_split(changed, 3))
    assert changed.mean() < 0.6
    assert told == []
    original = Figure.savefig
    with pytest.raises(KeyError), phases_in_figures(SAWTOOTH, told.append):
        raise KeyError
    assert Figure.savefig is original


def test_a_figure_that_cannot_be_drawn_into_is_saved_without(figure, tmp_path):
    told = []
    figure.axes[0].axvline = None
    with phases_in_figures(SAWTOOTH, told.append):
        figure.savefig(tmp_path / "progress.png")
    assert (tmp_path / "progress.png").is_file()
    assert len(told) == 1
    assert told[0].startswith("The phases are missing in progress.png: TypeError")


def test_a_training_draws_them(tmp_path, monkeypatch):
    trainer = maker(tmp_path, monkeypatch)("ResEncTrainer_ft_4ep_sawtooth")
    drawn = []
    monkeypatch.setattr("ssl_pretrain.finetuning.progress.draw_phases", lambda fig, phases: drawn.append(phases))
    run_epochs(trainer, 1, draw=True)
    assert drawn == [course_of(Schedule("sawtooth"), 4).phases]
    assert "are missing" not in log(trainer)
