"""Every fault of an image is found and named; what is merely unusual passes."""

import gzip

import nibabel
import numpy as np
import pytest
import SimpleITK
from made_data import volume
from made_images import write_image
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO

from ssl_pretrain.data.preparation.checks import intensity_outlier, read_checked, read_mask
from ssl_pretrain.data.preparation.image_case import ImageCase, ImageError

META = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = False
CompressedData = False
TransformMatrix = {matrix}
Offset = 0 0 0
CenterOfRotation = 0 0 0
ElementSpacing = {spacing}
DimSize = {size}
ElementType = MET_FLOAT
ElementDataFile = LOCAL
"""


def case_of(*files):
    return ImageCase(identifier="x", images=files)


def read(*files, reader=None, channels=None):
    return read_checked(case_of(*files), reader or SimpleITKIO(), channels or len(files))


def refused(*files, **options):
    with pytest.raises(ImageError) as error:
        read(*files, **options)
    assert str(files[-1]) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def meta_image(file, matrix="1 0 0 0 1 0 0 0 1", spacing="1 1 1", size="24 22 20"):
    file.write_bytes(META.format(matrix=matrix, spacing=spacing, size=size).encode() + volume(0)[0].tobytes())
    return file


def nifti(file, affine, voxels=None):
    image = nibabel.Nifti1Image(volume(0)[0].T if voxels is None else voxels, None)
    image.header.set_sform(affine, 1)
    nibabel.save(image, file)
    return file


@pytest.fixture
def image(tmp_path):
    return write_image(tmp_path / "x_0000.nii.gz", volume(0)[0], spacing=(1, 2, 3))


def test_a_sound_image_is_read_as_nnunet_reads_it(image, tmp_path):
    second = write_image(tmp_path / "x_0001.nii.gz", volume(1)[0], spacing=(1, 2, 3))
    data, properties, warnings = read(image, second)
    expected, same = SimpleITKIO().read_images([str(image), str(second)])
    assert data.dtype == np.float32
    assert np.array_equal(data, expected)
    assert properties == same
    assert warnings == []


@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_what_is_no_image(tmp_path, reader):
    file = tmp_path / "x_0000.nii.gz"
    assert "does not exist" in refused(file, reader=reader())
    file.touch()
    assert "is empty (0 bytes). Copy it again" in refused(file, reader=reader())
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:d5b69\nsize 56408\n")
    assert "is a pointer of Git LFS, not the image. Run `git lfs pull`" in refused(file, reader=reader())
    file.write_text("<!DOCTYPE html>\n<p>Please log in — bitte anmelden</p>\n" * 40, encoding="utf-8")
    assert "is a text file, not an image; it begins '<!DOCTYPE html>" in refused(file, reader=reader())
    file.write_text("Ж" * 300, encoding="utf-8")
    assert "is a text file, not an image; it begins 'ЖЖЖ" in refused(file, reader=reader())
    file.write_bytes(bytes(range(256)) * 8)
    assert "cannot be read: " in (message := refused(file, reader=reader()))
    assert "Copy or convert it again" in message


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".mha", ".nrrd", ".gipl"])
def test_a_truncated_file_is_not_filled_with_whatever_is_in_memory(tmp_path, ending):
    file = write_image(tmp_path / f"x_0000{ending}", volume(0)[0])
    assert read(file)[2] == []
    whole = file.read_bytes()
    for share in (0.98, 0.5, 0.1):
        file.write_bytes(whole[: int(share * len(whole))])
        message = refused(file)
        assert "truncated" in message or "cannot be read" in message


def test_damaged_compression_is_noticed(image):
    content = bytearray(image.read_bytes())
    content[-50] ^= 255
    image.write_bytes(content)
    assert "is truncated or damaged" in refused(image)


def test_compression_in_several_members_is_fine(image):
    content = gzip.decompress(image.read_bytes())
    image.write_bytes(b"".join(gzip.compress(content[i : i + 9999]) for i in range(0, len(content), 9999)))
    assert np.array_equal(read(image)[0], volume(0))


def test_compressed_to_less_than_the_header_promises(image):
    image.write_bytes(gzip.compress(gzip.decompress(image.read_bytes())[:-100]))
    assert "is truncated: it has 42492 bytes of 42592" in refused(image)


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".nrrd"])
def test_time_colour_and_complex_numbers(tmp_path, ending):
    file = tmp_path / f"x_0000{ending}"
    four = SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(volume(i)[0]) for i in range(3)])
    SimpleITK.WriteImage(four, str(file))
    assert "is 4-D (24 x 22 x 20 x 3 voxels). Split it into 3-D volumes" in refused(file)
    assert "is 4-D" in refused(file, channels=3)
    colour = SimpleITK.GetImageFromArray(np.ones((10, 12, 14, 3), dtype=np.uint8), isVector=True)
    SimpleITK.WriteImage(colour, str(file))
    assert "has RGB or vector voxels; one number per voxel is needed" in refused(file)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume(0)[0].astype(np.complex64)), str(file))
    # MetaImage has no complex numbers, it makes pairs of them.
    assert f"has {'RGB or vector' if ending == '.mha' else 'complex'} voxels" in refused(file)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(volume(0)[0, 0]), str(file))
    assert "is 2-D (24 x 22 voxels); a 3-D volume is needed" in refused(file)


def test_a_fourth_axis_of_one_is_no_time(tmp_path):
    file = tmp_path / "x_0000.mha"
    SimpleITK.WriteImage(SimpleITK.JoinSeries([SimpleITK.GetImageFromArray(volume(0)[0])]), str(file))
    assert np.array_equal(read(file)[0], volume(0))


def test_the_same_with_nibabel(tmp_path):
    file, reader = tmp_path / "x_0000.nii.gz", NibabelIO()
    voxels = volume(0)[0]
    nibabel.save(nibabel.Nifti1Image(voxels.T, np.eye(4)), file)
    assert np.array_equal(read(file, reader=reader)[0][0], voxels)
    nibabel.save(nibabel.Nifti1Image(np.stack([voxels] * 2, axis=-1), np.eye(4)), file)
    assert "is 4-D (20 x 22 x 24 x 2 voxels)" in refused(file, reader=reader)
    nibabel.save(nibabel.Nifti1Image(voxels.astype(np.complex64), np.eye(4)), file)
    assert "has complex voxels" in refused(file, reader=reader)
    colour = np.zeros((10, 10, 10), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colour, np.eye(4)), file)
    assert "has RGB or vector voxels" in refused(file, reader=reader)
    nifti(file, np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    assert "voxels" in refused(file, reader=reader) or "orientation" in refused(file, reader=reader)


def test_a_size_of_zero(tmp_path):
    assert "has no voxels: its size is 0 x 22 x 20" in refused(meta_image(tmp_path / "x_0000.mha", size="0 22 20"))


def test_voxels_without_a_size(tmp_path):
    file = meta_image(tmp_path / "x_0000.mha", spacing="0 1 1")
    assert "has voxels of size 0 x 1 x 1 mm. Correct the spacing" in refused(file)


@pytest.mark.parametrize("matrix", ["1 0 0 1 0 0 0 0 1", "1 0 0 0.7071068 0.7071068 0 0.7071068 0.7071068 0"])
def test_an_orientation_without_an_inverse(tmp_path, matrix):
    message = refused(meta_image(tmp_path / "x_0000.mha", matrix=matrix))
    assert "its orientation has no inverse (two axes point the same way)" in message
    assert "Correct the direction in its header" in message


def test_an_orientation_that_simpleitk_does_not_read(tmp_path):
    sheared = np.array([[1, 0.3, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    file = nifti(tmp_path / "x_0000.nii.gz", sheared)
    assert "its axes are not at right angles" in refused(file)
    assert np.array_equal(read(file, reader=NibabelIO())[0], volume(0))
    singular = sheared.copy()
    singular[1] = singular[0]
    assert "Resample the image, or correct its header" in refused(nifti(file, singular))


@pytest.mark.parametrize(
    ("geometry", "voxels", "difference"),
    [
        ({"spacing": (1, 2, 3.1)}, volume(1)[0], "their corners lie up to 1.9 mm apart"),
        ({"spacing": (1, 2, 3), "origin": (0, 0.2, 0)}, volume(1)[0], "their corners lie up to 0.2 mm apart"),
        ({"spacing": (1, 2, 3), "direction": (-1, 0, 0, 0, 1, 0, 0, 0, 1)}, volume(1)[0], "up to 46 mm apart"),
        ({"spacing": (1, 2, 3)}, volume(1)[0, 1:], "24 x 22 x 20 and 24 x 22 x 19 voxels"),
    ],
)
@pytest.mark.parametrize("reader", [SimpleITKIO, NibabelIO])
def test_channels_on_different_grids(image, tmp_path, geometry, voxels, difference, reader):
    second = write_image(tmp_path / "x_0001.nii.gz", voxels, **geometry)
    message = refused(image, second, reader=reader())
    assert "are channels of one case, but not on one grid: " in message
    assert difference in message
    assert "Resample one to the other" in message


def test_channels_whose_headers_differ_by_rounding_are_on_one_grid(image, tmp_path):
    geometry = {"spacing": (1, 2, 3.0000001), "origin": (0, 0.01, 0)}
    second = write_image(tmp_path / "x_0001.nii.gz", volume(1)[0], **geometry)
    data, _, warnings = read(image, second)
    assert data.shape[0] == 2
    # What nnU-Net's reader prints is passed on.
    assert "Not all input images have the same origin" in warnings[0]


def test_the_number_of_channels(image):
    assert "read as an array of 1 x 20 x 22 x 24, but the dataset has 2 channels" in refused(image, channels=2)


def test_nan_and_inf_even_where_simpleitk_reads_them_as_0(tmp_path):
    voxels = volume(0)[0]
    voxels[0, 0, :3], voxels[1, 1, 1] = np.nan, -np.inf
    for ending in (".nii.gz", ".nii", ".mha", ".nrrd"):
        message = refused(write_image(tmp_path / ending / f"x_0000{ending}", voxels))
        assert "3 voxels are NaN and 1 Inf. Write numbers there" in message
    assert np.isfinite(SimpleITKIO().read_images([str(tmp_path / ".nii" / "x_0000.nii")])[0]).all()
    # Too large for the single precision that nnU-Net computes in.
    huge = volume(0)[0].astype(np.float64)
    huge[3, 3, 3] = 1e300
    with np.errstate(over="ignore"):
        assert "0 voxels are NaN and 1 Inf" in refused(write_image(tmp_path / "x_0000.nii.gz", huge))


def test_a_twin_whose_voxels_would_be_read(image):
    twin = write_image(image.with_suffix(""), volume(1)[0], spacing=(1, 2, 3))
    assert np.array_equal(SimpleITKIO().read_images([str(image)])[0], volume(1))
    assert f"has {twin.name} beside it, and SimpleITK would read the voxels of that" in refused(image)
    assert np.array_equal(read(twin)[0], volume(1))
    assert np.array_equal(read(image, reader=NibabelIO())[0], volume(0))


def test_nothing_to_learn(image, tmp_path):
    constant = write_image(tmp_path / "x_0001.nii.gz", np.full((20, 22, 24), 7.0), spacing=(1, 2, 3))
    assert "every voxel is 7, there is nothing to learn" in refused(constant)
    # With a second channel that has something in it, that is for the user to judge.
    assert read(image, constant)[2] == [f"{constant}: is 7 everywhere"]


def test_what_a_reader_without_geometry_prints_is_a_warning(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    file = tmp_path / "x_0000.tif"
    tifffile.imwrite(file, volume(0)[0])
    data, properties, warnings = read(file, reader=Tiff3DIO())
    assert np.array_equal(data, volume(0))
    assert properties["spacing"] == (1, 1, 1)
    assert "no spacing file found" in warnings[0]
    tifffile.imwrite(file, volume(0)[0, 0])
    assert "Only 3D images are supported" in refused(file, reader=Tiff3DIO())


def test_a_stray_voxel_is_warned_of():
    voxels = 100 * volume(0)[0]
    assert intensity_outlier(voxels) is None
    voxels[3, 3, 3] = 20 * voxels.max()
    assert "A stray voxel? It is kept" in intensity_outlier(voxels)
    voxels[3, 3, 3] = -20 * voxels.max()
    assert "intensities reach from -" in intensity_outlier(voxels)
    sparse = np.zeros((20, 20, 20), dtype=np.float32)
    sparse[1, 1, 1] = 1
    assert intensity_outlier(sparse) is None


def test_a_map_of_labels_is_warned_of(tmp_path):
    file = write_image(tmp_path / "x_0000.nii.gz", (volume(0)[0] > 1).astype(np.uint8))
    assert read(file)[2] == [f"{file}: only 2 different values, as in a map of labels"]
    sparse = np.zeros((20, 22, 24), dtype=np.int16)
    sparse[10, 10, :] = range(24)
    assert read(write_image(file, sparse))[2] == []


def test_a_mask_is_what_is_not_zero(image, tmp_path):
    marks = np.zeros((20, 22, 24), dtype=np.int16)
    marks[2:5, 3:6, 4:7], marks[10, 10, 10] = 3, -1
    file = write_image(tmp_path / "mask.nii.gz", marks, spacing=(1, 2, 3))
    mask, warnings = read_mask(file, case_of(image), (20, 22, 24), SimpleITKIO())
    assert mask.dtype == bool
    assert np.array_equal(mask, marks[None] != 0)
    assert warnings == []
    write_image(file, marks, spacing=(1, 2, 4))
    assert (
        "is laid over its image voxel by voxel although their corners"
        in read_mask(file, case_of(image), (20, 22, 24), SimpleITKIO())[1][0]
    )


def test_masks_that_cannot_be_laid_over_the_image(image, tmp_path):
    def refused_mask(voxels):
        file = write_image(tmp_path / "mask.nii.gz", voxels)
        with pytest.raises(ImageError) as error:
            read_mask(file, case_of(image), (20, 22, 24), SimpleITKIO())
        return str(error.value)

    message = refused_mask(np.ones((20, 22, 23), dtype=np.uint8))
    assert f"is a mask of 20 x 22 x 23 voxels, its image {image} has 20 x 22 x 24" in message
    assert "10560 voxels are NaN" in refused_mask(np.full((20, 22, 24), np.nan))
    (tmp_path / "mask.nii.gz").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ImageError, match="git lfs pull"):
        read_mask(tmp_path / "mask.nii.gz", case_of(image), (20, 22, 24), SimpleITKIO())


def test_the_bad_files_of_the_real_sets(shared_data):
    bad = shared_data / "bad_input"
    for name in ("lfs_pointer_liver_0.nii.gz", "lfs_pointer_t1Gd.mha"):
        assert "Run `git lfs pull`" in refused(bad / name)
    _, _, warnings = read(bad / "openkbp_265_intensity_outlier_max32743.nii.gz")
    assert "intensities reach from -1024 to 31719, but 99.8 % of the voxels lie within -1024 to 10" in warnings[0]
    assert read(bad / "openkbp_246_trimmed_to_dose_region.nii.gz")[2] == []
    assert read(bad / "hippocampus_118_images.nii.gz")[2] == []
    for name, values in (("hippocampus_010_labels", 3), ("hippocampus_281_labels", 2)):
        assert f"only {values} different values, as in a map of labels" in read(bad / f"{name}.nii.gz")[2][0]


def test_no_sound_image_of_the_real_sets_is_warned_of(shared_data):
    files = [
        *sorted((shared_data / "Dataset004_Hippocampus" / "imagesTr").iterdir())[::2],
        *sorted((shared_data / "Dataset221_OpenKBP" / "imagesUn").iterdir())[::8],
        # The two with the widest range of all: 2.5 and 1.2 times.
        shared_data / "Dataset004_Hippocampus" / "imagesTr" / "hippocampus_288_0000.nii.gz",
        shared_data / "Dataset221_OpenKBP" / "imagesUn" / "openkbp_038_0000.nii.gz",
    ]
    assert [read(file)[2] for file in files] == [[]] * len(files)


def test_real_channels_lie_on_one_grid(shared_data):
    folder = shared_data / "Dataset222_OpenKBPDose" / "imagesTr"
    files = sorted(folder.iterdir())[:2]
    data, _, warnings = read(*files)
    assert len(data) == 2
    assert warnings == []
