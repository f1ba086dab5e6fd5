"""What image files say of themselves, read without their voxels: is this an image that can be used at all?"""

from __future__ import annotations

import gzip
import zlib
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from ssl_pretrain.data.preparation.image_case import ImageError

SAME_PLACE = 0.1
"""Voxels by which the corners of two images may lie apart on one grid."""

_NO_INVERSE = 1e-6  # volume of a voxel as a share of the box that its edges would span at right angles
_GIPL_HEADER = 256  # bytes
_PROBE = 512  # bytes that tell text from an image
_TEXT_HEADERS = (b"NRRD0", b"ObjectType", b"NDims")  # image formats that begin with text
_READ_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Header:
    """Geometry and kind of voxels.

    Attributes:
        size: voxels per axis, in the order of the file: (x, y, z), perhaps time.
        axes: 3 x 3, one column per axis: the step in mm from voxel to voxel.
        origin: place of the first voxel in mm.
        pixel: kind of voxels where it is no plain number: ``RGB or vector``, ``complex``.
    """

    size: tuple[int, ...]
    axes: npt.NDArray[np.float64]
    origin: npt.NDArray[np.float64]
    pixel: str | None

    def corners(self) -> npt.NDArray[np.float64]:
        """Places of the eight corner voxels in mm, ``(8, 3)``."""
        ends = np.array(list(product(*((0, n - 1) for n in self.size[:3]))), dtype=np.float64)
        return ends @ self.axes.T + self.origin


def check_file(file: Path) -> None:
    """Refuse what is no image, whatever its name says.

    Raises:
        ImageError: missing, empty, text, or damaged compression.
    """
    if not file.is_file():
        raise ImageError(f"{file} does not exist.")
    with file.open("rb") as handle:
        start = handle.read(_PROBE)
    if not start:
        raise ImageError(f"{file} is empty (0 bytes). Copy it again.")
    if start.startswith(b"version https://git-lfs"):
        raise ImageError(f"{file} is a pointer of Git LFS, not the image. Run `git lfs pull` where it comes from.")
    if _is_text(start):
        raise ImageError(
            f"{file} is a text file, not an image; it begins {start[:40].decode(errors='ignore')!r}. Copy it again."
        )


def _is_text(start: bytes) -> bool:
    if start.startswith(_TEXT_HEADERS):
        return False
    with suppress(UnicodeDecodeError):
        # An incremental decoder does not mind that the last character may be cut in two.
        text = getincrementaldecoder("utf-8")().decode(start)
        return all(character.isprintable() or character.isspace() for character in text)
    return False


def read_header(file: Path, reader: Any) -> Header | None:
    """The header as the library behind nnU-Net's reader sees it; None for readers of formats without geometry.

    Raises:
        ImageError: the file cannot be read, or its orientation has no meaning.
    """
    from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    if isinstance(reader, SimpleITKIO):
        return _read_with_simpleitk(file)
    if isinstance(reader, (NibabelIO, NibabelIOWithReorient)):
        return _read_with_nibabel(file)
    return None


def _read_with_simpleitk(file: Path) -> Header:
    import SimpleITK

    twin = file.with_suffix("")
    if file.name.endswith(".nii.gz") and twin.exists():
        # The NIfTI library takes the header of the one and the voxels of the other.
        raise ImageError(
            f"{file} has {twin.name} beside it, and SimpleITK would read the voxels of that. Move one away."
        )
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise ImageError(
                f"{file}: its axes are not at right angles, or have no length, and SimpleITK does not read such an "
                "orientation. Resample the image, or correct its header (sform and qform)."
            ) from error
        raise ImageError(f"{file} cannot be read: {message_of_itk(error)}. Copy or convert it again.") from error
    n = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(n, n)
    axes, origin = np.eye(3), np.zeros(3)
    inner = min(n, 3)
    axes[:inner, :inner] = (direction * np.array(reader.GetSpacing()))[:inner, :inner]
    origin[:inner] = reader.GetOrigin()[:inner]
    kind = SimpleITK.GetPixelIDValueAsString(reader.GetPixelID())
    pixel = "complex" if "complex" in kind else "RGB or vector" if reader.GetNumberOfComponents() > 1 else None
    return Header(tuple(reader.GetSize()), axes, origin, pixel)


def _read_with_nibabel(file: Path) -> Header:
    import nibabel

    try:
        image: Any = nibabel.load(file)
        size, affine, kind = tuple(map(int, image.shape)), np.asarray(image.affine, dtype=float), image.get_data_dtype()
    except Exception as error:
        raise ImageError(
            f"{file} cannot be read: {type(error).__name__}: {error}. Copy or convert it again."
        ) from error
    pixel = "complex" if kind.kind == "c" else "RGB or vector" if kind.fields else None
    return Header(size, affine[:3, :3], affine[:3, 3], pixel)


def check_header(file: Path, header: Header) -> None:
    """Refuse images that nnU-Net's preprocessing would take for something else, or fail on.

    Raises:
        ImageError: 4-D, 2-D, RGB, vector or complex voxels, a size of zero, an orientation without an inverse.
    """
    if header.pixel is not None:
        raise ImageError(
            f"{file} has {header.pixel} voxels; one number per voxel is needed. Convert it: one file per channel, "
            "_0000, _0001, …"
        )
    if 0 in header.size:
        raise ImageError(f"{file} has no voxels: its size is {_times(header.size)}.")
    if len(header.size) < 3:
        raise ImageError(f"{file} is {len(header.size)}-D ({_times(header.size)} voxels); a 3-D volume is needed.")
    if len(header.size) > 3 and any(n > 1 for n in header.size[3:]):
        raise ImageError(
            f"{file} is {len(header.size)}-D ({_times(header.size)} voxels). Split it into 3-D volumes: channels as "
            "_0000, _0001, …, points in time as cases of their own."
        )
    lengths = np.linalg.norm(header.axes, axis=0)
    if not np.isfinite(header.axes).all() or not np.isfinite(header.origin).all() or not lengths.all():
        raise ImageError(f"{file} has voxels of size {_times(lengths)} mm. Correct the spacing in its header.")
    if not abs(np.linalg.det(header.axes / lengths)) > _NO_INVERSE:
        raise ImageError(
            f"{file}: its orientation has no inverse (two axes point the same way), so nobody knows where the voxels "
            "lie. Correct the direction in its header."
        )


def check_content(file: Path) -> None:
    """Refuse what SimpleITK would silently make something else of.

    It fills what is missing of a truncated NIfTI or GIPL file with whatever is in memory, does not notice damaged
    compression, and turns NaN and Inf in a NIfTI file into 0.

    Raises:
        ImageError: truncated or damaged, or a NIfTI file with NaN or Inf.
    """
    start, end, numbers = _voxels_in(file)
    if not end and file.suffix != ".gz":
        return
    nan = inf = stored = 0
    try:
        with _uncompressed(file) as stream:
            stored = len(stream.read(start))
            while block := stream.read(_READ_AT_ONCE):
                stored += len(block)
                if numbers is not None and numbers.kind == "f":
                    values = np.frombuffer(block[: len(block) - len(block) % numbers.itemsize], dtype=numbers)
                    nan += int(np.count_nonzero(np.isnan(values)))
                    inf += int(np.count_nonzero(np.isinf(values)))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ImageError(f"{file} is truncated or damaged ({error}). Copy it again.") from error
    if stored < end:
        raise ImageError(f"{file} is truncated: it has {stored} bytes of {end}. Copy it again.")
    refuse_nonfinite(str(file), nan, inf)


def _uncompressed(file: Path) -> IO[bytes]:
    """The file, unpacked by gzip if it is packed; readers do not go by the name either."""
    with file.open("rb") as handle:
        packed = handle.read(2) == b"\x1f\x8b"
    return cast("IO[bytes]", gzip.open(file)) if packed else file.open("rb")


def refuse_nonfinite(names: str, nan: int, inf: int) -> None:
    """Say how many voxels are no numbers.

    Raises:
        ImageError: some are.
    """
    if nan or inf:
        raise ImageError(
            f"{names}: {nan} voxels are NaN and {inf} Inf. Write numbers there (for example with numpy.nan_to_num), or "
            "leave the image out."
        )


def _voxels_in(file: Path) -> tuple[int, int, np.dtype[Any] | None]:
    """First byte of the voxels, the byte after the last, and their type; 0 and None where nobody needs to know."""
    if file.name.endswith((".nii", ".nii.gz")):
        import nibabel

        # What nibabel does not take, SimpleITK may; its own errors are told when it reads.
        with suppress(Exception):
            array: Any = nibabel.load(file).dataobj  # type: ignore[attr-defined]
            size = int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize
            return int(array.offset), int(array.offset) + size, array.dtype
    if file.name.endswith(".gipl"):
        import SimpleITK

        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(file))
        with quiet_itk(), suppress(RuntimeError):
            reader.ReadImageInformation()
            pixel = SimpleITK.GetArrayViewFromImage(SimpleITK.Image([1] * reader.GetDimension(), reader.GetPixelID()))
            return 0, _GIPL_HEADER + int(np.prod(reader.GetSize(), dtype=np.int64)) * int(pixel.itemsize), None
    return 0, 0, None


def check_same_grid(files: Sequence[Path], headers: Sequence[Header]) -> None:
    """Refuse channels that do not lie on one grid.

    Raises:
        ImageError: names the first two that differ, and in what.
    """
    for file, header in zip(files[1:], headers[1:], strict=True):
        difference = grid_difference(headers[0], header)
        if difference is not None:
            raise ImageError(
                f"{files[0]} and {file} are channels of one case, but not on one grid: {difference}. Resample one to "
                "the other, or correct the header that is wrong."
            )


def grid_difference(one: Header, other: Header) -> str | None:
    """In what two grids differ, in words; None if corner lies on corner to a tenth of a voxel."""
    if one.size[:3] != other.size[:3]:
        return f"{_times(one.size)} and {_times(other.size)} voxels"
    apart = float(np.abs(one.corners() - other.corners()).max())
    voxel = float(np.linalg.norm(one.axes, axis=0).min())
    if apart <= SAME_PLACE * voxel:
        return None
    return f"their corners lie up to {apart:.4g} mm apart (origin, spacing or direction), a voxel has {voxel:.4g} mm"


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Without ITK's warnings, which it writes past Python, into the progress bar."""
    import SimpleITK

    shown = SimpleITK.ProcessObject.GetGlobalWarningDisplay()
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(shown)


def message_of_itk(error: Exception) -> str:
    """The sentence in an error of SimpleITK, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line.partition("ERROR: ")[2] for line in lines if "ERROR: " in line]
    return (said or lines or ["unknown error"])[0].rstrip(".")


def _times(numbers: Sequence[Any] | npt.NDArray[Any]) -> str:
    return " x ".join(f"{n:g}" for n in numbers)
