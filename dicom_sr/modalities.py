"""The image SOP Classes of each modality that a model can be given. PS3.4 Table B.5-1; the retired ones as in 2004."""

from __future__ import annotations

from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    SecondaryCaptureImageStorage,
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
)

CT_CLASSES: set[str] = {CTImageStorage, EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage}
MR_CLASSES: set[str] = {MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage}
PT_CLASSES: set[str] = {
    PositronEmissionTomographyImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
}
ULTRASOUND_CLASSES: set[str] = {
    UltrasoundImageStorage,
    UltrasoundMultiFrameImageStorage,
    SecondaryCaptureImageStorage,
    "1.2.840.10008.5.1.4.1.1.6",  # Ultrasound Image Storage, retired
    "1.2.840.10008.5.1.4.1.1.3",  # Ultrasound Multi-frame Image Storage, retired
}
# for processing: before the maker's own contrast and edges; a card that takes only one of the two names its class
CR_CLASSES: set[str] = {ComputedRadiographyImageStorage}
DX_CLASSES: set[str] = {DigitalXRayImageStorageForPresentation, DigitalXRayImageStorageForProcessing}
MG_CLASSES: set[str] = {
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalMammographyXRayImageStorageForProcessing,
}

VOLUME_CLASSES: dict[str, set[str]] = {
    "CT": CT_CLASSES,
    "MR": MR_CLASSES,
    "PT": PT_CLASSES,
}  # whose images may be slices of one volume
IMAGE_CLASSES: dict[str, set[str]] = VOLUME_CLASSES | {
    "US": ULTRASOUND_CLASSES,
    "CR": CR_CLASSES,
    "DX": DX_CLASSES,
    "MG": MG_CLASSES,
}
PROJECTION = frozenset(
    {"CR", "DX", "MG"}
)  # X-rays through the patient onto a detector: what is nearer to it is smaller
CALLED = {
    "CT": "a CT image",
    "MR": "an MR image",
    "PT": "a PET image",
    "US": "an ultrasound image",
    "CR": "a computed radiograph",
    "DX": "a digital radiograph",
    "MG": "a mammogram",
}
