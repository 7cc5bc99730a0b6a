"""Images that are none, or none that the networks know: a defined answer or a refusal in words, and bounded memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from models.breast_us.pipeline import BreastUltrasound, Prediction
from models.lung_nodule.pipeline import LungNodule
from models.phantoms.breast import breast_picture, breast_ultrasound, ultrasound_dicom
from models.pipeline import UnfitInput
from models.read import read_ultrasound
from tests.unit.models.test_bad_input import ct, saved


def silent(_fraction: float, _what: str) -> None:
    pass


# ---------------------------------------------------------------------------------------------------------- CT


@pytest.fixture(scope="module")
def lung_nodule() -> LungNodule:
    return LungNodule("cpu", {"threads": 1})


@pytest.mark.parametrize(
    ("hu", "reason"),
    [
        (np.zeros((6, 64, 64)), "no air: the darkest hundredth of the picture has 0 HU"),
        (np.ones((6, 64, 64)), "no air"),
        (np.full((6, 64, 64), -1024), "no tissue: the densest voxel has -1024 HU"),
        (np.full((6, 64, 64), 3071), "no air"),
        (np.random.default_rng(0).integers(-1000, 400, (6, 64, 64)), "no lungs found"),
        (np.full((6, 1, 500), -800), "no tissue"),
        (np.full((6, 500, 1), 40), "no air"),
        (np.full((6, 8, 3000), -800), "no tissue"),
        (np.zeros((1, 64, 64)), "1 slices are too few"),
    ],
)
def test_what_is_no_chest_is_refused(lung_nodule, tmp_path, hu, reason):
    with pytest.raises(UnfitInput, match=reason):
        lung_nodule.run(saved(tmp_path, ct(hu.astype(np.int16))), silent)


# ------------------------------------------------------------------------------------------------- ultrasound


@pytest.fixture(scope="module")
def breast_us() -> BreastUltrasound:
    return BreastUltrasound("cpu", {"threads": 1})


@pytest.fixture
def unseen(breast_us, monkeypatch) -> BreastUltrasound:
    """The pipeline, with a network that fails if it is asked."""

    def asked(*_args):
        raise AssertionError("the network was asked about a picture without sense")

    monkeypatch.setattr(breast_us, "answer", asked)
    return breast_us


def us(pixels: np.ndarray, **values: object) -> Dataset:
    """Grey of 8 or 16 bits, or RGB."""
    image = ultrasound_dicom(np.zeros(pixels.shape[:2], np.uint8), spacing_mm=None, patient_id="BAD")
    image.BitsAllocated = image.BitsStored = 8 * pixels.dtype.itemsize
    image.HighBit = image.BitsStored - 1
    if pixels.ndim == 3:
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PlanarConfiguration = 3, "RGB", 0
    data = pixels.tobytes()
    image.PixelData = data + b"\0" * (len(data) % 2)
    image["PixelData"].VR = "OW" if image.BitsAllocated > 8 else "OB"
    for keyword, value in values.items():
        setattr(image, keyword, value)
    return image


@pytest.fixture(scope="module")
def breast() -> np.ndarray:
    """(300, 400) uint8"""
    return breast_picture(np.random.default_rng(0), (300, 400), (0.12, 0.12), None, 6.0)


SPECKLE = np.random.default_rng(0).integers(0, 256, (3000, 3000), np.uint8)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((300, 400), np.uint8), "hardly any contrast"),
        (np.ones((300, 400), np.uint8), "hardly any contrast"),
        (np.full((300, 400), 255, np.uint8), "hardly any contrast"),
        (np.full((300, 400, 3), (9, 9, 9), np.uint8), "hardly any contrast"),
        (SPECKLE[:300, :400].astype("<u2"), "hardly any contrast.*check Bits Stored"),  # 8 bits in 16 said to be stored
        (np.full((300, 400, 3), (200, 0, 40), np.uint8), "colour"),
        (SPECKLE[:1, :500], "1 x 500 pixels, at least 64 x 64"),
        (SPECKLE[:500, :1], "500 x 1 pixels, at least 64 x 64"),
        (SPECKLE[:8], "8 x 3000 pixels, at least 64 x 64"),
        (SPECKLE[:64], "a strip of 64 x 3000 pixels"),
        (SPECKLE[:, :64], "a strip of 3000 x 64 pixels"),
    ],
)
def test_a_picture_that_shows_nothing_is_refused(unseen, tmp_path, pixels, reason):
    with pytest.raises(UnfitInput, match=reason):
        unseen.run(saved(tmp_path, [us(pixels)]), silent)


def test_float_pixels_are_no_ultrasound(unseen, tmp_path):
    image = us(SPECKLE[:80, :90])
    del image.PixelData
    image.BitsAllocated = image.BitsStored = 32
    image.FloatPixelData = np.full((80, 90), np.nan, "<f4").tobytes()
    with pytest.raises(UnfitInput, match="Float Pixel Data is no ultrasound"):
        unseen.run(saved(tmp_path, [image]), silent)


def test_a_blank_image_beside_a_good_one_is_named_and_the_good_one_answered(breast_us, breast, tmp_path, monkeypatch):
    nothing = Prediction(np.zeros((300, 400), np.float32), np.array([0.9, 0.05, 0.05]), np.zeros((300, 400), bool))
    monkeypatch.setattr(breast_us, "look", lambda grey, region=None: nothing)
    blank, good = us(np.zeros((300, 400), np.uint8), InstanceNumber=1), us(breast, InstanceNumber=2)
    good.SOPInstanceUID = good.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    found = breast_us.run(saved(tmp_path, [blank, good]), silent)
    assert [image.sop_instance_uid for image in found.images] == ["1.2.3.4"]
    assert any(text.startswith("not looked at: image number 1: ") and "contrast" in text for text in found.warnings)


def test_of_a_cine_blank_frames_are_counted_and_not_looked_at(breast_us, breast, tmp_path, monkeypatch):
    nothing = Prediction(np.zeros(breast.shape, np.float32), np.array([0.9, 0.05, 0.05]), np.zeros(breast.shape, bool))
    monkeypatch.setattr(breast_us, "look", lambda grey, region=None: nothing)
    frames = np.stack([np.zeros_like(breast), breast, breast[:, ::-1]])
    cine = us(frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    found = breast_us.run(saved(tmp_path, [cine]), silent)
    assert [image.frame for image in found.images] == [2, 3]
    assert any("1 of 3 frames were not looked at" in text and "contrast" in text for text in found.warnings)


def test_the_same_scene_in_other_pixels_is_the_same_finding(breast_us, tmp_path):
    """MONOCHROME1, palette, 16 bits and RGB of one picture."""
    source = dcmread(breast_ultrasound(tmp_path, seed=3).files[0])
    grey = source.pixel_array
    regions = {"SequenceOfUltrasoundRegions": source.SequenceOfUltrasoundRegions}
    ramp = (np.arange(256)[::-1] * 257).astype("<u2").tobytes()
    palette = {
        f"{name}PaletteColorLookupTable{what}": value
        for name in ("Red", "Green", "Blue")
        for what, value in (("Descriptor", [256, 0, 16]), ("Data", ramp))
    }
    forms = [
        us(grey, **regions),
        us(255 - grey, PhotometricInterpretation="MONOCHROME1", **regions),
        us(grey.astype("<u2") * 257, **regions),
        us(np.repeat(grey[..., None], 3, axis=2), **regions),
        us(255 - grey, PhotometricInterpretation="PALETTE COLOR", **palette, **regions),
    ]
    looked = []
    for number, form in enumerate(forms):
        path = tmp_path / f"form-{number}.dcm"
        form.save_as(path, enforce_file_format=True)
        (frame,) = read_ultrasound(path).frames()
        np.testing.assert_allclose(frame.grey.astype(int), grey, atol=1 if number == 4 else 0)
        if number < 2:
            looked.append(breast_us.run([path], silent))
    one, other = (found.findings[0] for found in looked)
    np.testing.assert_array_equal(one.mask, other.mask)
    assert (one.offset_zyx, one.certainty, one.measurements) == (other.offset_zyx, other.certainty, other.measurements)


def test_a_picture_far_larger_than_the_network_is_answered_in_bounded_memory(breast_us, breast, tmp_path):
    large = np.kron(breast, np.ones((12, 12), np.uint8))
    paths = saved(tmp_path, [us(large)])
    tracemalloc.start()
    found = breast_us.run(paths, silent)
    assert tracemalloc.get_traced_memory()[1] < 40 * large.size
    tracemalloc.stop()
    assert len(found.images) == 1
    assert sum(m.value for m in found.measurements) == pytest.approx(100, abs=0.2)
