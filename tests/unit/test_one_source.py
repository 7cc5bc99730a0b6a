"""What two packages must agree on is decided in one place."""

from __future__ import annotations

from dataclasses import replace

from pydicom.dataset import Dataset

from dicom_sr import encode
from dicom_sr.source import plane
from models.read import calibration
from tests.factories import ct_series, us_image
from tests.results import WHEN, ct_findings


def test_segmentation_and_measurements_use_one_calibration() -> None:
    """Two tissue regions, a colour region and another PixelSpacing: reader and writer choose the same one."""
    image = us_image(shape=(200, 300))
    small, large, colour = Dataset(), Dataset(), Dataset()
    places = ((small, (90, 90), 0.01, 1), (large, (290, 190), 0.02, 1), (colour, (299, 199), 0.03, 2))
    for region, (x1, y1), delta_cm, kind in places:
        region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, kind, 0
        region.RegionLocationMinX0 = region.RegionLocationMinY0 = 0
        region.RegionLocationMaxX1, region.RegionLocationMaxY1 = x1, y1
        region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
        region.PhysicalDeltaX, region.PhysicalDeltaY = delta_cm, delta_cm / 2
    image.SequenceOfUltrasoundRegions = [small, colour, large]
    image.PixelSpacing = [0.5, 0.5]
    spacing_mm = plane(image).spacing_mm
    assert spacing_mm is not None
    assert [float(mm) for mm in spacing_mm] == [0.1, 0.2]  # rows, columns of the largest tissue region
    assert calibration(image)[0] == (0.1, 0.2)


def test_other_options_make_other_objects() -> None:
    images = ct_series(shape=(3, 16, 16))
    plain = ct_findings(images)
    uids = {
        str(dataset.SOPInstanceUID)
        for variant in ("", '{"peak": 0.9}')
        for dataset in encode(replace(plain, variant=variant), images, when=WHEN)
    }
    assert len(uids) == 2
