"""DICOM -> Hounsfield units and grey values, against small images made here, field by field."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from models.phantoms.chest import ct_dicom
from models.pipeline import UnfitInput
from models.pixels import AIR_HU
from models.read import Volume, display, read_ct, read_image, read_ultrasound, read_volume
from tests.factories import ct_series, us_image
from tests.harness import need

ROWS, COLUMNS = 48, 64  # JPEG 2000 wants some
SPACING = (2.5, 0.8, 0.6)


def affine(orientation="HFS", origin=(-30.0, 20.0, 100.0)):
    from models.phantoms.chest import ORIENTATIONS

    cosines = np.array(ORIENTATIONS[orientation])
    out = np.eye(4)
    out[:3, :3] = np.stack([np.cross(cosines[:3], cosines[3:]), cosines[3:], cosines[:3]], 1) * SPACING
    out[:3, 3] = origin
    return out


def truth(slices=5):
    """HU whose value tells its place: 100·z + row - column."""
    z, y, x = np.indices((slices, ROWS, COLUMNS))
    return (100 * z + y - x).astype(np.int16)


def images(slices=5, orientation="HFS"):
    return [
        ct_dicom(hu, affine(orientation), z, orientation, patient_id="TEST", series="read")
        for z, hu in enumerate(truth(slices))
    ]


def stored(folder, datasets, names=None):
    paths = [folder / (names[i] if names else f"{i:03d}.dcm") for i in range(len(datasets))]
    for path, dataset in zip(paths, datasets, strict=True):
        dataset.save_as(path, enforce_file_format=True)
    return paths


@pytest.mark.parametrize("orientation", ["HFS", "FFS", "HFP", "FFP", "oblique", "sagittal", "coronal"])
def test_slices_are_ordered_by_place_not_by_name_or_number(tmp_path, orientation):
    datasets = images(orientation=orientation)
    for dataset, number in zip(datasets, (3, 1, 5, 2, 4), strict=True):
        dataset.InstanceNumber = number
    paths = stored(tmp_path, datasets, ["c", "a", "e", "d", "b"])
    volume = read_ct([paths[i] for i in (4, 0, 3, 1, 2)])
    np.testing.assert_array_equal(volume.hu, truth())
    assert [ref.sop_instance_uid for ref in volume.images] == [d.SOPInstanceUID for d in datasets]
    np.testing.assert_allclose(volume.affine, affine(orientation), atol=1e-5)
    assert volume.spacing_mm == pytest.approx(SPACING)
    assert volume.voxel_mm3 == pytest.approx(np.prod(SPACING))
    # the corner voxel of the last slice, straight from its header
    assert volume.position_lps_mm((4, 0, 0)) == pytest.approx(tuple(datasets[4].ImagePositionPatient), abs=1e-4)


def test_each_slice_has_its_own_slope_and_intercept(tmp_path):
    datasets = images()
    for z, dataset in enumerate(datasets):
        slope, intercept = 2 ** -(z % 3), -1024 + 7 * z
        pixels = ((truth()[z] - intercept) / slope).astype("<u2")
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelRepresentation = slope, intercept, 0
        dataset.PixelData = pixels.tobytes()
    np.testing.assert_array_equal(read_ct(stored(tmp_path, datasets)).hu, truth())


def test_monochrome1_does_not_turn_hounsfield_units_round(tmp_path):
    datasets = images()
    for dataset in datasets:
        dataset.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_array_equal(read_ct(stored(tmp_path, datasets)).hu, truth())


def test_twelve_bits_with_an_overlay_above_them(tmp_path):
    datasets = images(3)
    for z, dataset in enumerate(datasets):
        dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation, dataset.RescaleIntercept = 12, 11, 0, -1024
        pixels = (truth(3)[z] + 1024).astype("<u2")
        pixels[2:4] |= 0x1000  # a retired overlay bit
        dataset.PixelData = pixels.tobytes()
    np.testing.assert_array_equal(read_ct(stored(tmp_path, datasets)).hu, truth(3))


def test_padding_becomes_air_even_when_its_sign_is_written_wrongly(tmp_path):
    datasets = images(3)
    for z, dataset in enumerate(datasets):
        pixels = truth(3)[z].copy()
        pixels[0, 0], pixels[0, 1] = -2000, -1990
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "US", 65536 - 2000)
        dataset.add_new("PixelPaddingRangeLimit", "SS", -1980)
    hu = read_ct(stored(tmp_path, datasets)).hu
    assert (hu[:, 0, :2] == AIR_HU).all()
    np.testing.assert_array_equal(hu[:, 1:], truth(3)[:, 1:])


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    ],
)
def test_transfer_syntaxes(tmp_path, syntax):
    paths = []
    for z, dataset in enumerate(images(3)):
        path = tmp_path / f"{z}.dcm"
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False)
            dataset.save_as(path, enforce_file_format=True)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
            if syntax == ExplicitVRBigEndian:
                dataset.PixelData = truth(3)[z].astype(">i2").tobytes()
            dataset.save_as(path, enforce_file_format=True)
        paths.append(path)
    np.testing.assert_array_equal(read_ct(paths).hu, truth(3))


def enhanced(slices=4, backwards=True):
    """An Enhanced CT image: geometry shared, position and rescale per frame, frames stored from top to bottom."""
    order = range(slices)[::-1] if backwards else range(slices)
    classic = images(slices)
    source = classic[0]
    image = Dataset()
    copied = "StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID Modality PatientID PatientName Rows Columns"
    copied += " SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit PixelRepresentation"
    for keyword in copied.split():
        setattr(image, keyword, source[keyword].value)
    image.SOPClassUID, image.SOPInstanceUID, image.NumberOfFrames = EnhancedCTImageStorage, "1.2.3.4", slices
    shared = Dataset()
    shared.PlaneOrientationSequence = [part(source, "ImageOrientationPatient")]
    shared.PixelMeasuresSequence = [part(source, "PixelSpacing", "SliceThickness")]
    image.SharedFunctionalGroupsSequence = [shared]
    frames, groups = [], []
    for z in order:
        own = Dataset()
        own.PlanePositionSequence = [part(classic[z], "ImagePositionPatient")]
        rescale = Dataset()
        rescale.RescaleIntercept, rescale.RescaleSlope, rescale.RescaleType = 10 * z, 1, "HU"
        own.PixelValueTransformationSequence = [rescale]
        groups.append(own)
        frames.append(truth(slices)[z] - 10 * z)
    image.PerFrameFunctionalGroupsSequence = Sequence(groups)
    image.PixelData = np.stack(frames).astype("<i2").tobytes()
    image["PixelData"].VR = "OW"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


def part(source, *keywords):
    out = Dataset()
    for keyword in keywords:
        setattr(out, keyword, source[keyword].value)
    return out


def test_enhanced_ct_frames_are_ordered_by_place(tmp_path):
    volume = read_ct(stored(tmp_path, [enhanced()]))
    np.testing.assert_array_equal(volume.hu, truth(4))
    assert [ref.frame for ref in volume.images] == [4, 3, 2, 1]  # 1-based, as stored
    np.testing.assert_allclose(volume.affine, affine(), atol=1e-5)


def without(keyword):
    return lambda datasets: [delattr(d, keyword) for d in datasets]


def changed(index, **values):
    return lambda datasets: [setattr(datasets[index], keyword, value) for keyword, value in values.items()]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without("ImagePositionPatient"), "ImagePositionPatient is missing"),
        (without("ImageOrientationPatient"), "ImageOrientationPatient is missing"),
        (without("PixelSpacing"), "PixelSpacing is missing"),
        (without("RescaleSlope"), "RescaleSlope"),
        (changed(2, ImagePositionPatient=[-30, 20, 102.5]), "same position"),
        (changed(4, ImagePositionPatient=[-30, 20, 120]), "missing"),
        (changed(1, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "another orientation"),
        (changed(1, PixelSpacing=[0.9, 0.6]), "PixelSpacing"),
        (changed(1, Modality="MR"), "Modality is MR"),
        (changed(3, PixelData=b"\0\0"), "cannot be decoded"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(tmp_path, spoil, reason):
    datasets = images()
    spoil(datasets)
    with pytest.raises(UnfitInput, match=reason):
        read_ct(stored(tmp_path, datasets))


def test_files_that_are_no_dicom_are_refused(tmp_path):
    (tmp_path / "x.dcm").write_bytes(b"hello" * 100)
    with pytest.raises(UnfitInput, match=r"x\.dcm cannot be read"):
        read_ct([tmp_path / "x.dcm"])
    with pytest.raises(UnfitInput, match="no files"):
        read_ct([])
    with pytest.raises(UnfitInput, match=r"x\.dcm cannot be read"):
        read_ultrasound(tmp_path / "x.dcm")


# ------------------------------------------------------------------------------------------------- ultrasound


def ultrasound(pixels, photometric="MONOCHROME2", **values):
    image = Dataset()
    frames = pixels.ndim - (pixels.shape[-1] == 3) == 3
    image.SOPClassUID = UltrasoundMultiFrameImageStorage if frames else UltrasoundImageStorage
    image.SOPInstanceUID, image.StudyInstanceUID, image.SeriesInstanceUID = "1.2.3", "1.2.4", "1.2.5"
    image.Modality, image.PatientID = "US", "TEST"
    image.SamplesPerPixel = 3 if pixels.shape[-1] == 3 else 1
    if image.SamplesPerPixel == 3:
        image.PlanarConfiguration = 0
    image.PhotometricInterpretation = photometric
    if frames:
        image.NumberOfFrames = pixels.shape[0]
    image.Rows, image.Columns = pixels.shape[frames : frames + 2]
    image.BitsAllocated = image.BitsStored = pixels.dtype.itemsize * 8
    image.HighBit, image.PixelRepresentation = image.BitsStored - 1, 0
    image.PixelData = pixels.tobytes()
    for keyword, value in values.items():
        setattr(image, keyword, value)
    image["PixelData"].VR = "OW" if image.BitsAllocated == 16 else "OB"
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return image


GREY = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5


def one(folder, image):
    return read_ultrasound(stored(folder, [image])[0])


def test_grey_inverted_and_multi_frame(tmp_path):
    clip = one(tmp_path, ultrasound(GREY))
    (frame,) = clip.frames()
    np.testing.assert_array_equal(frame.grey, GREY)
    assert frame.rgb is None
    assert clip.images[0].frame is None
    assert [region.spacing_mm for region in clip.regions] == [None]
    assert "PixelData" not in clip.header
    (inverted,) = one(tmp_path, ultrasound(GREY, "MONOCHROME1")).frames()
    np.testing.assert_array_equal(inverted.grey, 255 - GREY)
    cine = one(tmp_path, ultrasound(np.stack([GREY, GREY // 2, GREY // 3])))
    np.testing.assert_array_equal([f.grey for f in cine.frames()], [GREY, GREY // 2, GREY // 3])
    np.testing.assert_array_equal([f.grey for f in cine.frames([2, 0])], [GREY // 3, GREY])
    assert [ref.frame for ref in cine.images] == [1, 2, 3]


def test_colour_becomes_luma(tmp_path):
    rgb = np.stack([GREY, GREY // 2, 255 - GREY], -1)
    (frame,) = one(tmp_path, ultrasound(rgb, "RGB")).frames()
    np.testing.assert_array_equal(frame.rgb, rgb)
    expected = 0.299 * rgb[..., 0] + 0.587 * rgb[..., 1] + 0.114 * rgb[..., 2]
    np.testing.assert_allclose(frame.grey, expected, atol=0.51)
    ybr = np.stack([GREY, np.full_like(GREY, 128), np.full_like(GREY, 128)], -1)  # grey in YBR
    (frame,) = one(tmp_path, ultrasound(ybr, "YBR_FULL")).frames()
    np.testing.assert_allclose(frame.grey, GREY, atol=1)


def test_palette_colour(tmp_path):
    ramp = (np.arange(256) * 257).astype("<u2")
    table = {
        f"{name}PaletteColorLookupTable{what}": value
        for name, values in (("Red", ramp), ("Green", ramp), ("Blue", ramp))
        for what, value in (("Descriptor", [256, 0, 16]), ("Data", values.tobytes()))
    }
    (frame,) = one(tmp_path, ultrasound(GREY, "PALETTE COLOR", **table)).frames()
    np.testing.assert_allclose(frame.grey, GREY, atol=1)
    cine = one(tmp_path, ultrasound(np.stack([GREY, GREY // 2]), "PALETTE COLOR", **table))
    np.testing.assert_allclose([f.grey for f in cine.frames()], [GREY, GREY // 2], atol=1)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_more_bits_and_an_overlay_above_them(tmp_path, bits):
    stored = (GREY.astype(np.uint16) << (bits - 8)) | (GREY >> (16 - bits) if bits > 8 else 0)
    with_overlay = stored | (0xF000 if bits == 12 else 0x0100 if bits == 8 else 0)
    image = ultrasound(with_overlay.astype("<u2"), BitsStored=bits, HighBit=bits - 1)
    (frame,) = one(tmp_path, image).frames()
    np.testing.assert_allclose(frame.grey, GREY, atol=1)


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless, JPEGLSLossless])
def test_frames_of_a_cine_in_other_transfer_syntaxes(tmp_path, syntax):
    shown = np.random.default_rng(0).integers(0, 256, (3, ROWS, COLUMNS, 3), dtype=np.uint8)
    image = ultrasound(shown, "RGB")
    if syntax.is_encapsulated:
        image.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        image.file_meta.TransferSyntaxUID = syntax
        image["PixelData"].VR = "OB"
    else:
        image.file_meta.TransferSyntaxUID = syntax
    clip = one(tmp_path, image)
    np.testing.assert_array_equal([f.rgb for f in clip.frames()], shown)
    (last,) = clip.frames([2])
    np.testing.assert_array_equal(last.rgb, shown[2])


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_long_cine_is_never_in_memory_as_a_whole(tmp_path, syntax):
    shown = np.random.default_rng(0).integers(0, 256, (60, 120, 160, 3), dtype=np.uint8)
    image = ultrasound(shown, "RGB")
    if syntax.is_encapsulated:
        image.compress(syntax, generate_instance_uid=False)
    (path,) = stored(tmp_path, [image])
    tracemalloc.start()
    count = sum(frame.grey.shape == (120, 160) for frame in read_ultrasound(path).frames())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 60
    assert peak < shown.nbytes / 5


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ({"PhotometricInterpretation": "HSV"}, "PhotometricInterpretation is HSV"),
        ({"NumberOfFrames": 4}, "cannot be decoded"),  # one more than there are pixels for
        ({"NumberOfFrames": -1}, "NumberOfFrames is -1"),
        ({"PixelData": None}, "cannot be decoded"),
        ({"Rows": None}, "Rows is missing"),
        ({"BitsAllocated": 7}, "cannot be decoded"),
    ],
)
def test_ultrasound_that_cannot_be_read_is_refused_in_words(tmp_path, spoil, reason):
    image = ultrasound(np.stack([GREY, GREY // 2, GREY // 3]))
    for keyword, value in spoil.items():
        if value is None:
            delattr(image, keyword)
        else:
            setattr(image, keyword, value)
    with pytest.raises(UnfitInput, match=reason):
        list(one(tmp_path, image).frames())


def test_a_cut_off_compressed_cine_is_refused_in_words(tmp_path):
    shown = np.random.default_rng(0).integers(0, 256, (3, ROWS, COLUMNS), dtype=np.uint8)
    image = ultrasound(shown)
    image.compress(RLELossless, generate_instance_uid=False)
    image.NumberOfFrames = 5
    with pytest.raises(UnfitInput, match="cannot be decoded"):
        list(one(tmp_path, image).frames())


def test_real_ultrasound_files_of_many_kinds(shared_data, tmp_path):
    import zipfile

    with zipfile.ZipFile(shared_data / "us_dicom.zip") as archive:
        archive.extractall(tmp_path)
    paths = sorted(tmp_path.rglob("*.dcm"))
    assert len(paths) == 8
    for path in paths:
        clip, whole = read_ultrasound(path), dcmread(path)
        theirs = whole.pixel_array if "YBR" not in whole.PhotometricInterpretation else None
        count = 0
        for frame in clip.frames():
            assert frame.grey.shape == (whole.Rows, whole.Columns)
            assert frame.grey.std() > 1
            assert (frame.rgb is None) == (whole.PhotometricInterpretation == "MONOCHROME2")
            if whole.PhotometricInterpretation == "RGB" and theirs is not None:
                np.testing.assert_array_equal(frame.rgb, theirs)
            count += 1
        assert count == int(whole.get("NumberOfFrames") or 1)
        assert len(clip.regions) == 1


def test_a_ct_is_displayed_through_its_own_window(tmp_path):
    """PS3.3 C.11.2.1.2.1: black up to centre - 0.5 - (width - 1) / 2, white from that far above it."""
    dataset = images(1)[0]
    dataset.WindowCenter, dataset.WindowWidth = ["0", "40"], ["41", "400"]
    [path] = stored(tmp_path, [dataset])
    shown = display(path, None)
    assert (shown.shape, shown.dtype) == ((ROWS, COLUMNS, 3), np.uint8)
    hu = truth(1)[0].astype(float)
    np.testing.assert_array_equal(shown[..., 0] == 0, hu <= -20.5)
    np.testing.assert_array_equal(shown[..., 0] == 255, hu >= 19.5)
    inside = (hu > -20.5) & (hu < 19.5)
    np.testing.assert_allclose(shown[..., 0][inside], (hu[inside] + 20.5) / 40 * 255, atol=0.51)
    assert (shown[..., 0] == shown[..., 1]).all()
    assert (shown[..., 0] == shown[..., 2]).all()
    del dataset.WindowCenter
    [path] = stored(tmp_path, [dataset])
    assert display(path, None).min() > 64, "without a window of its own the lungs' one: -63 HU is light grey"


def test_an_ultrasound_frame_is_displayed_as_it_is(tmp_path):
    from tests.factories import us_image

    pixels = np.random.default_rng(1).integers(0, 256, (3, 48, 64, 3), np.uint8)
    us_image(tmp_path / "clip", frames=3, colour=True, voxels=pixels, name="displayed")
    np.testing.assert_array_equal(display(tmp_path / "clip" / "0000.dcm", 2), pixels[1])
    us_image(tmp_path / "grey", voxels=pixels[0, ..., 0], name="displayed grey")
    np.testing.assert_array_equal(display(tmp_path / "grey" / "0000.dcm", None), pixels[0, ..., :1].repeat(3, 2))


def test_ultrasound_made_by_others_agrees_with_their_truth(shared_data, tmp_path):
    """Fourteen variants of one picture: colours, transfer syntaxes, calibrations, cines."""
    maker = shared_data.parent / "interop" / "make_us.py"
    if not maker.is_file():
        pytest.skip(f"no {maker}")
    need("dcmcjpeg")
    told = [sys.executable, str(maker), str(tmp_path), "--frames", "4", "--rows", "120", "--cols", "160"]
    subprocess.run(told, check=True, capture_output=True)
    truths = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/truth.json"))]
    assert len(truths) == 14
    (plain,) = read_ultrasound(tmp_path / "mono" / "us.dcm").frames()
    for truth in truths:
        clip = read_ultrasound(tmp_path / truth["variant"] / "us.dcm")
        (region,) = clip.regions
        assert region.spacing_mm == (truth["spacing_mm"] and pytest.approx(truth["spacing_mm"]))
        assert region.box[2] == (79 if truth["variant"] == "two_regions" else 159)
        assert clip.images[0].sop_instance_uid == truth["sop"]
        lesions = truth.get("lesion_px_by_frame") or [truth["lesion_px"]]
        y, x = np.indices(clip.shape)
        for frame, lesion in zip(clip.frames(), lesions, strict=True):
            inside = np.hypot((x - lesion["cx"]) / lesion["rx"], (y - lesion["cy"]) / lesion["ry"]) < 0.8
            assert frame.grey[inside].mean() < 0.5 * frame.grey[clip.shape[0] // 3 : -10, 60:100].mean()
        if len(lesions) == 1 and truth["variant"] != "burned":
            assert np.abs(frame.grey.astype(int) - plain.grey).mean() < 12  # tinted, or compressed with loss


@given(
    st.tuples(*[st.floats(-500, 500)] * 3),
    st.tuples(*[st.floats(0.3, 5)] * 3),
    st.floats(-0.4, 0.4),
    st.tuples(*[st.floats(-300, 300)] * 3),
)
def test_a_place_has_the_index_whose_place_it_is(origin_mm, spacing_mm, tilt, index):
    """A tilted gantry, too: slices are then shifted against each other."""
    dz, dy, dx = spacing_mm
    affine = np.array([[0, 0, dx, origin_mm[0]], [dz * np.sin(tilt), dy, 0, origin_mm[1]], [dz, 0, 0, origin_mm[2]]])
    volume = Volume(np.zeros((1, 1, 1), np.int16), (), spacing_mm, np.vstack([affine, [0, 0, 0, 1]]), ())
    np.testing.assert_allclose(volume.index_zyx(volume.position_lps_mm(index)), index, atol=1e-6)


# Modalities beyond CT and ultrasound ---------------------------------------------------------------------------------


def as_mr(folder: Path, **changes: Any) -> list[Path]:
    """A series of MR with unsigned values above what a CT's 16 bits with a sign hold."""
    paths = []
    for number, image in enumerate(ct_series(shape=(4, 6, 8))):
        image.Modality, image.SOPClassUID = "MR", MRImageStorage
        image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        del image.RescaleSlope, image.RescaleIntercept, image.RescaleType
        image.PixelRepresentation = 0
        image.PixelData = np.full((6, 8), 40000 + number, "<u2").tobytes()
        for keyword, value in changes.items():
            setattr(image, keyword, value)
        paths.append(folder / f"{number}.dcm")
        image.save_as(paths[-1], enforce_file_format=True)
    return paths


def test_an_mr_is_read_in_its_own_values(tmp_path: Path) -> None:
    volume = read_volume(as_mr(tmp_path))
    assert volume.values.dtype == np.float32
    assert volume.values[:, 0, 0].tolist() == [40000, 40001, 40002, 40003]
    with pytest.raises(UnfitInput, match="Modality is MR, not CT"):
        read_ct(as_mr(tmp_path))


def test_what_rescales_an_mr_is_heeded_and_padding_is_zero(tmp_path: Path) -> None:
    paths = as_mr(tmp_path, RescaleSlope=0.5, RescaleIntercept=10, RescaleType="US", PixelPaddingValue=40001)
    assert read_volume(paths).values[:, 0, 0].tolist() == [20010, 0, 20011, 20011.5]


def test_a_ct_is_read_alike_by_both(tmp_path: Path) -> None:
    ct_series(tmp_path, shape=(4, 6, 8))
    files = sorted(tmp_path.iterdir())
    assert np.array_equal(read_ct(files).hu, read_volume(files).values)


@pytest.mark.parametrize(("colours", "first"), [("MONOCHROME2", 4000.0), ("MONOCHROME1", 95.0)])
def test_a_radiograph_keeps_all_its_bits_and_the_brighter_is_the_larger(
    tmp_path: Path, colours: str, first: float
) -> None:
    image = us_image(shape=(4, 6))
    image.Modality, image.SOPClassUID = "DX", DigitalXRayImageStorageForPresentation
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
    image.PhotometricInterpretation = colours
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 12, 11
    image.ImagerPixelSpacing = [0.1, 0.2]
    image.pop("SequenceOfUltrasoundRegions", None)
    stored = np.zeros((4, 6), "<u2")
    stored[0, 0] = 4000
    image.PixelData = stored.tobytes()
    image["PixelData"].VR = "OW"
    image.save_as(tmp_path / "dx.dcm", enforce_file_format=True)
    clip = read_image(tmp_path / "dx.dcm")
    [values] = clip.values()
    assert values[0, 0] == first
    assert clip.regions[0].spacing_mm == (0.1, 0.2)
    assert display(tmp_path / "dx.dcm", None)[0, 0, 0] == (255 if colours == "MONOCHROME2" else 6)
