"""The coded concepts we use, each with the context group (CID, PS3.16) that lists it.

Meanings are written as the Standard writes them, save LONG_AXIS and SHORT_AXIS: OHIF finds those two by their meaning.
SNOMED CT codes are SCT, never SRT.
"""

from __future__ import annotations

from pydicom.sr.coding import Code

# Segment category, CID 7150
MORPHOLOGICALLY_ABNORMAL_STRUCTURE = Code("49755003", "SCT", "Morphologically Abnormal Structure")
ANATOMICAL_STRUCTURE = Code("91723000", "SCT", "Anatomical Structure")

# Segment type, CID 7159
NODULE = Code("27925004", "SCT", "Nodule")
MASS = Code("4147007", "SCT", "Mass")
LESION = Code("52988006", "SCT", "Lesion")
NEOPLASM = Code("108369006", "SCT", "Neoplasm")
LYMPH_NODE = Code("59441001", "SCT", "Lymph Node")  # CID 7166

# Sites: CID 4 and CID 7192
LUNG = Code("39607008", "SCT", "Lung")
BREAST = Code("76752008", "SCT", "Breast")
MEDIASTINUM = Code("72410000", "SCT", "Mediastinum")
ABDOMEN = Code("818981001", "SCT", "Abdomen")
THORAX = Code("816094009", "SCT", "Thorax")
# lobes, CID 6170
UPPER_LOBE = Code("45653009", "SCT", "Upper lobe of lung")
MIDDLE_LOBE = Code("72481006", "SCT", "Middle lobe of right lung")
LOWER_LOBE = Code("90572001", "SCT", "Lower lobe of lung")
# laterality, CID 244
RIGHT = Code("24028007", "SCT", "Right")
LEFT = Code("7771000", "SCT", "Left")
BILATERAL = Code("51440002", "SCT", "Bilateral")

# Lengths, CID 7470
LONG_AXIS = Code("103339001", "SCT", "Long Axis")  # capital A: OHIF's Bidirectional tool looks for these words
SHORT_AXIS = Code("103340004", "SCT", "Short Axis")
DIAMETER = Code("81827009", "SCT", "Diameter")
MEAN_DIAMETER = DIAMETER  # with derivation=MEAN: the Standard has no concept of its own
MAX_3D_DIAMETER = Code("L0JK", "IBSI", "Maximum 3D Diameter of a Mesh")
SOLID_DIAMETER = Code("SOLIDDIAMETER", "99PACSNODE", "Diameter of solid component")  # with derivation=MEAN; private
PLEURA_DISTANCE = Code("PLEURADISTANCE", "99PACSNODE", "Distance from pleura")  # private
# areas, CID 7471; volumes, CID 7472
AREA = Code("42798000", "SCT", "Area")
VOLUME = Code("118565006", "SCT", "Volume")
VOXEL_VOLUME = Code("YEKZ", "IBSI", "Volume from Voxel Summation")
MESH_VOLUME = Code("RNU0", "IBSI", "Volume of Mesh")
# TID 1410
IMAGE_REGION = Code("111030", "DCM", "Image Region")
# attenuation, CID 6141
MEAN_HU = Code("112181", "DCM", "Mean Attenuation Coefficient")
MIN_HU = Code("112179", "DCM", "Minimum Attenuation Coefficient")
MAX_HU = Code("112180", "DCM", "Maximum Attenuation Coefficient")
SD_HU = Code("112183", "DCM", "Standard Deviation of Attenuation Coefficient")
MR_SIGNAL = Code("110852", "DCM", "MR signal intensity")  # CID 7469, with derivation
NUMBER_OF_LESIONS = Code("246206008", "SCT", "Number of lesions")
# what an algorithm claims, CID 6048
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
PROBABILITY_OF_CANCER = Code("111047", "DCM", "Probability of cancer")
PROBABILITY_OF_NORMAL = Code("PNORMAL", "99PACSNODE", "Probability of normal")
PROBABILITY_OF_BENIGN = Code("PBENIGN", "99PACSNODE", "Probability of benign")

# Derivation of a measurement, CID 7464
MEAN = Code("373098007", "SCT", "Mean")
STANDARD_DEVIATION = Code("386136009", "SCT", "Standard Deviation")

# Units, CID 7181 (UCUM)
MM = Code("mm", "UCUM", "mm")
MM2 = Code("mm2", "UCUM", "square millimeter")
MM3 = Code("mm3", "UCUM", "cubic millimeter")
HU = Code("[hnsf'U]", "UCUM", "Hounsfield unit")
PERCENT = Code("%", "UCUM", "Percent")
NO_UNITS = Code("1", "UCUM", "no units")
PIXELS = Code("{pixels}", "UCUM", "pixels")  # an annotation, UCUM section 6
DAYS = Code("d", "UCUM", "day")
LESIONS = Code("{lesions}", "UCUM", "lesions")

# Evaluations
FINDING = Code("121071", "DCM", "Finding")
PRESENT = Code("52101004", "SCT", "Present")  # CID 240
ABSENT = Code("272519000", "SCT", "Absent")  # CID 240
BENIGN = Code("30807003", "SCT", "Benign")  # CID 6063
MALIGNANT = Code("21594007", "SCT", "Malignant")  # CID 6063
BREAST_NORMAL = Code("290084006", "SCT", "Breast normal")  # CID 6054
ULTRASOUND_NORMAL = Code("169254007", "SCT", "Ultrasound scan normal")  # CID 6054
ASSESSMENT_CATEGORY = Code("111005", "DCM", "Assessment Category")
# kind of nodule, as the public LIDC reports have it (lidc2dicom; their designator RadLex is RADLEX in PS3.16)
NODULE_TYPE = Code("C41144", "NCIt", "Texture")
SOLID = Code("RID50151", "RADLEX", "solid pulmonary nodule")
PART_SOLID = Code("RID50152", "RADLEX", "part-solid pulmonary nodule")
NON_SOLID = Code("RID50153", "RADLEX", "non-solid pulmonary nodule")
NODULE_TYPE_RULE = Code("NODULETYPERULE", "99PACSNODE", "Rule of the nodule type")  # private
US_ORIENTATION = Code("111354", "DCM", "Orientation")
PARALLEL = Code("111355", "DCM", "Parallel")  # CID 6152
NOT_PARALLEL = Code("111356", "DCM", "Not parallel")  # CID 6152

# Change since an earlier study. Quantity CID 6133; quality CID 6134 and, for "new", CID 6002
DIFFERENCE_IN_SIZE = Code("442714003", "SCT", "Difference in size")  # of the mean diameter, with derivation=MEAN
QUALITATIVE_DIFFERENCE = Code("111049", "DCM", "Qualitative Difference")
INCREASE_IN_SIZE = Code("15454001", "SCT", "Increase in size")
DECREASE_IN_SIZE = Code("19776001", "SCT", "Decrease in size")
NO_SIGNIFICANT_CHANGE = Code("129723006", "SCT", "No significant changes in the finding")
NEW_FINDING = Code("129721008", "SCT", "New finding")
DESCRIPTION_OF_CHANGE = Code("111021", "DCM", "Description of Change")
TEMPORAL_PREDECESSOR = Code("121348", "DCM", "Temporal Predecessor")  # CID 7201
PREVIOUS_FINDINGS = Code("18834-2", "LN", "Previous Findings")  # CID 7001
PRIOR_REPORT = Code("122075", "DCM", "Prior report for current patient")  # CID 3407
STUDY_DATE = Code("111060", "DCM", "Study Date")
TEMPORAL_OFFSET = Code("128740", "DCM", "Longitudinal Temporal Offset from Event")
TEMPORAL_EVENT_TYPE = Code("128741", "DCM", "Longitudinal Temporal Event Type")
# ours, where PS3.16 and SNOMED CT as we have them hold no concept
DIAMETER_CHANGE = Code("CHG-DIAM", "99PACSNODE", "Relative change of mean diameter")
VOLUME_CHANGE = Code("CHG-VOL", "99PACSNODE", "Relative change of volume")
VOLUME_DOUBLING_TIME = Code("VDT", "99PACSNODE", "Volume doubling time")
GROWTH_IN_12_MONTHS = Code("GROWTH-12MO", "99PACSNODE", "Mean diameter grew by more than 1.5 mm within 12 months")
PRIOR_STUDY = Code("PRIOR-STUDY", "99PACSNODE", "Prior study compared with")
NO_LONGER_FOUND = Code("NO-LONGER-FOUND", "99PACSNODE", "Number of earlier lesions no longer found")
REGISTRATION_RESIDUAL = Code("REG-RESIDUAL", "99PACSNODE", "Residual of rigid registration")

# The report itself, TID 1500 and what it includes
IMAGING_MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")  # CID 7021
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
MEASUREMENT_GROUP = Code("125007", "DCM", "Measurement Group")
TRACKING_IDENTIFIER = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UID = Code("112040", "DCM", "Tracking Unique Identifier")
FINDING_SITE = Code("363698007", "SCT", "Finding Site")
LATERALITY = Code("272741003", "SCT", "Laterality")
DERIVATION = Code("121401", "DCM", "Derivation")
OUTLINE = Code("111041", "DCM", "Outline")  # TID 4107
EQUIVALENT_MEANING = Code("121050", "DCM", "Equivalent Meaning of Concept Name")
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")  # TID 1500, row 12
SOURCE = Code("260753009", "SCT", "Source")  # as highdicom names an image that is one
SUMMARY = Code("121111", "DCM", "Summary")
REFERENCED_SEGMENT = Code("121191", "DCM", "Referenced Segment")
COMMENT = Code("121106", "DCM", "Comment")
DEVICE = Code("121007", "DCM", "Device")  # CID 270
CT_PROCEDURE = Code("25045-6", "LN", "CT unspecified body region")  # CID 100
IMAGING_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")  # CID 100; it has no ultrasound
ARTIFICIAL_INTELLIGENCE = Code("123110", "DCM", "Artificial Intelligence")  # CID 7162

DEVICE_OBSERVER_NAME = Code("121013", "DCM", "Device Observer Name")
DEVICE_OBSERVER_MANUFACTURER = Code("121014", "DCM", "Device Observer Manufacturer")
DEVICE_OBSERVER_MODEL_NAME = Code("121015", "DCM", "Device Observer Model Name")
DEVICE_OBSERVER_SERIAL_NUMBER = Code("121016", "DCM", "Device Observer Serial Number")
PROCEDURE_REPORTED = Code("121058", "DCM", "Procedure reported")
FINDING_CATEGORY = Code("276214006", "SCT", "Finding category")
ALGORITHM_NAME = Code("111001", "DCM", "Algorithm Name")

# What a Segmentation says of its source, CID 7203, CID 7202; of the maker, CID 7005
SEGMENTATION_DERIVATION = Code("113076", "DCM", "Segmentation")
SOURCE_IMAGE_FOR_PROCESSING = Code("121322", "DCM", "Source image for image processing operation")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")

# Results that replace others, CID 7031; and what was not run, CID 6042
REJECTED_FOR_QUALITY_REASONS = Code("113001", "DCM", "Rejected for Quality Reasons")
KEY_OBJECT_DESCRIPTION = Code("113012", "DCM", "Key Object Description")
SUMMARY_OF_ANALYSES = Code("111065", "DCM", "Summary of Analyses")
NOT_ATTEMPTED = Code("111225", "DCM", "Not Attempted")
NUMBER_OF_FRAMES = Code("121140", "DCM", "Number of Frames")
FRAMES = Code("{frames}", "UCUM", "frames")

SUGGESTED = "Suggested "  # how the meaning of a suggested category begins
