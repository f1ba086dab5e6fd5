"""Where to crop: which case, from which voxel on, how turned and mirrored. Drawn before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ssl_pretrain.data.cases import Cases
from ssl_pretrain.data.pool import CasePool
from ssl_pretrain.data.spatial import CropConfig, Transform, draw_transform, triple_of
from ssl_pretrain.functional.geometry import Triple
from ssl_pretrain.functional.views import Views, field_of

Generators = Callable[..., np.random.Generator]
"""The generator that belongs to some numbers: to a sample, or to a sample and one of its views."""


class Place(NamedTuple):
    """A crop that is not read yet.

    Attributes:
        row: of the case in its pool.
        start: first voxel of the patch in the case, before the transform.
        transform: rotation, scale and mirroring.
    """

    row: int
    start: Triple
    transform: Transform


class Places(Protocol):
    """A source of places."""

    def draw(self, pool: CasePool, config: CropConfig, patch: Triple, number: int, random: Generators) -> list[Place]:
        """The places of a sample's crops, as many for every sample: a function of its number and the generators."""


@dataclass(frozen=True)
class ViewPlaces:
    """Places as the config says (everywhere, around labels, in the anatomy), and as :class:`Views` lie to each other.

    Crops of several cases are drawn as if each were a sample. Of crops of one case, the first is drawn as if it were
    alone, and the others near it. Those have its rotation and scale and a mirroring of their own: then the voxels that
    two of them share are a box along the axes of either crop, known exactly. With rotations of their own they would
    share a polyhedron, whose voxels correspond to each other only by interpolation.

    Attributes:
        views: crops per sample; their size is the patch that :meth:`draw` is called with.
    """

    views: Views

    def draw(self, pool: CasePool, config: CropConfig, patch: Triple, number: int, random: Generators) -> list[Place]:
        """See :class:`Places`."""
        views = self.views
        if not views.together:
            crops = range(number * views.count, (number + 1) * views.count)
            return [_draw_place(pool, config, patch, random(crop)) for crop in crops]
        first = _draw_place(pool, config, patch, random(number))
        places = [first]
        for rng in (random(number, view) for view in range(1, views.count)):
            start = draw_near(first, views.overlap, pool.case(first.row), patch, rng)
            d, h, w = (bool(flip < config.mirror_p) for flip in rng.random(3))
            places.append(first._replace(start=start, transform=first.transform._replace(mirror=(d, h, w))))
        return places


@dataclass(frozen=True)
class GridPlaces:
    """Places side by side in one field of a case, as :attr:`Views.grid` says, and others anywhere within that field.

    The field is drawn as if it were a crop: as the config says, with a rotation and a scale. All crops have these, and
    each a mirroring of its own. Rotated and scaled ones are shifted to the nearest whole voxel.

    Attributes:
        views: with a grid; the size of the crops is the patch that :meth:`draw` is called with.
    """

    views: Views

    def draw(self, pool: CasePool, config: CropConfig, patch: Triple, number: int, random: Generators) -> list[Place]:
        """See :class:`Places`."""
        grid = self.views.grid or (1, 1, 1)
        field = field_of(grid, patch)
        whole = _draw_place(pool, config, field, random(number), patch)
        matrix = np.eye(3) if whole.transform.matrix is None else whole.transform.matrix
        cells = list(np.ndindex(grid))
        places = []
        for view in range(self.views.count):
            rng = random(number, view)
            d, h, w = (bool(flip < config.mirror_p) for flip in rng.random(3))
            first = rng.integers(0, np.subtract(field, patch) + 1)
            if view < len(cells):
                first = np.multiply(cells[view], patch)
            # From the middle of the field to that of the crop, along the crop's axes.
            shift = first - np.subtract(field, patch) / 2
            start = np.add(whole.start, np.subtract(field, patch) / 2) + matrix @ shift
            places.append(Place(whole.row, triple_of(np.rint(start)), whole.transform._replace(mirror=(d, h, w))))
        return places


def places_of(views: Views) -> Places:
    """The source of places that lie to each other as views say."""
    return GridPlaces(views) if views.grid else ViewPlaces(views)


class Pair(NamedTuple):
    """Two points that belong together, of two cases or of one.

    Attributes:
        case: dataset, folder and identifier, as in :attr:`CasePool.names`.
        point: voxel of the case.
        other: the second case.
        other_point: its voxel.
        score: how often the pair is drawn in relation to others; above 0.
    """

    case: str
    point: Triple
    other: str
    other_point: Triple
    score: float


class PairPlaces:
    """Places around the points of a table of pairs: two crops per sample, each rotated, scaled and mirrored by itself.

    Args:
        pool: what :meth:`draw` will be called with; pairs of cases that are not in it are left aside.
        pairs: the table.

    Raises:
        ValueError: no pair is left, or a score is not above 0 and finite.
    """

    def __init__(self, pool: CasePool, pairs: Sequence[Pair]) -> None:
        rows = {name: row for row, name in enumerate(pool.names)}
        kept = [pair for pair in pairs if pair.case in rows and pair.other in rows]
        if not kept:
            raise ValueError(f"None of {len(pairs)} pairs is of two cases among the {len(rows)} to draw from.")
        if worst := [pair for pair in kept if not 0 < pair.score < inf]:
            raise ValueError(
                f"The score of a pair must be above 0 and finite, got {worst[0].score} for {worst[0].case}."
            )
        # Arrays, not objects: see CasePool.
        self._rows = np.array([(rows[pair.case], rows[pair.other]) for pair in kept])
        self._points = np.array([(pair.point, pair.other_point) for pair in kept])
        self._ends = np.cumsum([pair.score for pair in kept])

    def draw(self, pool: CasePool, config: CropConfig, patch: Triple, number: int, random: Generators) -> list[Place]:
        """See :class:`Places`."""
        which = random(number).random() * self._ends[-1]
        pair = int(np.searchsorted(self._ends, which, side="right"))
        places = []
        for view, (row, point) in enumerate(zip(self._rows[pair].tolist(), self._points[pair], strict=True), start=1):
            cases, identifier = pool.case(row)
            start = around(point, cases.shape(identifier), patch)
            places.append(Place(row, start, draw_transform(config, patch, random(number, view))))
        return places


def _draw_place(
    pool: CasePool, config: CropConfig, patch: Triple, rng: np.random.Generator, flat: Triple | None = None
) -> Place:
    """A place of a patch; whether it is rotated in the plane only is decided by another one where that is given."""
    row = pool.draw(rng)
    transform = draw_transform(config, flat or patch, rng)
    return Place(row, draw_start(config, patch, *pool.case(row), rng), transform)


def draw_start(config: CropConfig, patch: Triple, cases: Cases, identifier: str, rng: np.random.Generator) -> Triple:
    """First voxel of a crop: uniform over all places inside, or around a voxel of a label or of the anatomy."""
    shape = cases.shape(identifier)
    lows, highs = _place_ranges(shape, patch)
    start = rng.integers(lows, highs + 1)
    wants_foreground, which_class, which_voxel = rng.random(3)
    candidates: list[npt.NDArray[np.integer[Any]]] = []
    if wants_foreground < config.oversample_foreground:
        candidates = [voxels[:, -3:] for voxels in cases.foreground(identifier).values()]
    if not candidates and config.sample_in == "anatomy":
        candidates = [voxels for voxels in (cases.anatomy(identifier),) if len(voxels)]
    if not candidates:
        return triple_of(start)
    voxels = candidates[int(which_class * len(candidates))]
    return around(voxels[int(which_voxel * len(voxels))], shape, patch)


def draw_near(first: Place, overlap: float, case: tuple[Cases, str], patch: Triple, rng: np.random.Generator) -> Triple:
    """First voxel of a crop that shares at least ``overlap`` of its voxels along each of its own axes with another.

    The shift is uniform along the crop's axes. It is shortened where it leads out of the case, and to whole voxels.

    Args:
        first: the other crop; both have its rotation and scale.
        overlap: from 0, side by side at most, to 1, the same place.
        case: folder and identifier.
        patch: voxels per axis.
        rng: owner of the randomness.
    """
    matrix = np.eye(3) if first.transform.matrix is None else first.transform.matrix
    # In whole voxels, so that counting voxels gives no less than was asked for; 1 - 0.9 is not quite 0.1.
    reach = np.floor((1 - overlap) * np.array(patch) + 1e-6)
    lows, highs = _place_ranges(case[0].shape(case[1]), patch)
    wanted = first.start + matrix @ (rng.uniform(-1, 1, 3) * reach)
    shift = np.trunc(np.clip(wanted, lows, highs) - first.start)
    # The case's axes are not the crop's: what was cut off along the former may have made it longer along the latter.
    inverse = np.linalg.inv(matrix)
    while (excess := (np.abs(inverse @ shift) / (reach + 1e-6)).max()) > 1:
        shift = np.trunc(shift / excess)
    return triple_of(first.start + shift)


def around(voxel: npt.ArrayLike, shape: Triple, patch: Triple) -> Triple:
    """First voxel of the patch with a voxel in its middle, or as near to it as the case allows."""
    return triple_of(np.clip(np.asarray(voxel) - np.array(patch) // 2, *_place_ranges(shape, patch)))


def place_range(size: int, patch: int) -> tuple[int, int]:
    """First and last start of a patch along an axis; a smaller volume is centred in it, as in nnU-Net."""
    missing = max(patch - size, 0)
    if missing:
        return -missing // 2, -(missing // 2)
    return 0, size - patch


def _place_ranges(shape: Triple, patch: Triple) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    lows, highs = np.array([place_range(n, p) for n, p in zip(shape, patch, strict=True)]).T
    return lows, highs
