"""An error in words: its kind, what it says and where it came from, and never a value of the patient's."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_sr import EncodingError
from models.pipeline import UnfitInput
from pacs_node.deliver.destination import named
from pacs_node.errors import GiveUp, SpoolFull, Told

VALUES = ["DOE^JANE", "Doe^Jane", "MRN-0012345", "19450312", "Müller, Jörg", "O'BRIEN^ANN", "0,085x", "1.2.826.0.1.x"]

# What libraries do with a value that they do not understand; each raises for every one of VALUES
MISUSES: dict[str, Callable[[str], Any]] = {
    "float": float,
    "int": int,
    "Decimal": Decimal,
    "dict": lambda value: {}[value],
    "list": lambda value: [][int(value)],
    "strptime": lambda value: datetime.strptime(value, "%d %m"),
    "json": lambda value: json.loads(f'{{"PatientName": {value}'),
    "numpy": lambda value: np.array([value]).astype(float),
    "open": lambda value: Path("/nowhere", value).read_bytes(),
    "DS": lambda value: pydicom.valuerep.DSfloat(value, validation_mode=pydicom.config.RAISE),
    "IS": lambda value: pydicom.valuerep.IS(value, validation_mode=pydicom.config.RAISE),
    "DA": lambda value: pydicom.valuerep.DA(value + "-"),
    "UI": lambda value: DataElement(0x00100020, "UI", value + " ", validation_mode=pydicom.config.RAISE),
    "US": lambda value: Dataset().from_json({"00280010": {"vr": "US", "Value": [value]}}),
    "attribute": lambda value: setattr(Dataset(), "PatientName", object()) or Dataset().PatientID,
    "code": lambda value: hd.sr.CodedConcept(value, "99", value * 30),
    "coding": lambda value: Code(value),  # type: ignore[call-arg]
    "enum": lambda value: hd.sr.RelationshipTypeValues(value),
    "raised": lambda value: raised(ValueError(f"patient {value} is unknown")),
    "quoted": lambda value: raised(RuntimeError(f"patient {value!r} (born {value}) is unknown")),
    "many": lambda value: raised(TypeError(f"{value}")),
}


def raised(error: BaseException) -> None:
    raise error


def told(does: Callable[[], Any]) -> Told | None:
    try:
        does()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is told
        return Told.of(error)
    return None


@pytest.mark.parametrize("name", MISUSES)
@pytest.mark.parametrize("value", VALUES)
def test_no_value_of_the_data_is_told(name: str, value: str) -> None:
    said = told(lambda: MISUSES[name](value))
    if said is None or name == "open":
        return  # a file's name is ours: the value would be in no name of ours
    for text in (said.words, said.trace):
        assert value not in text
        for part in [part for part in value.replace("^", " ").replace(",", " ").split() if len(part) > 2]:
            assert part not in text, (part, text)


def test_most_of_these_do_raise() -> None:
    raising = [name for name, misuse in MISUSES.items() if told(lambda misuse=misuse: misuse("DOE^JANE")) is not None]
    assert len(raising) >= len(MISUSES) - 2, set(MISUSES) - set(raising)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (GiveUp("the settings have no peer 'pacs'"), "GiveUp: the settings have no peer 'pacs'"),
        (SpoolFull("/data has less than 5 GB free"), "SpoolFull: /data has less than 5 GB free"),
        (UnfitInput("gantry tilt of 12.0 degrees"), "UnfitInput: gantry tilt of 12.0 degrees"),
        (EncodingError("a mask does not fit"), "EncodingError: a mask does not fit"),
        (OSError(28, "No space left on device"), "OSError: No space left on device"),
        (PermissionError(13, "Permission denied", "/a/b/01-SR.dcm"), "PermissionError: Permission denied (01-SR.dcm)"),
        (RuntimeError("the disk is on fire"), "RuntimeError: the disk is on fire"),
        (IndexError("list index out of range"), "IndexError: list index out of range"),
        (KeyError("PixelSpacing"), "KeyError: 'PixelSpacing'"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (ValueError("first line\nPatientName: Doe"), "ValueError: first line"),
    ],
)
def test_what_is_said_is_kept(error: Exception, words: str) -> None:
    said = told(lambda: raised(error))
    assert said is not None
    assert said.words.startswith(f"{words}, at tests.unit.node.test_told line ")


def test_where_it_came_from_is_the_line_that_raised_and_our_own() -> None:
    said = told(lambda: named(object(), "1.2"))  # type: ignore[arg-type]
    assert said is not None
    assert ", at pydicom.uid line " in said.words
    assert ", called by pacs_node.association line " in said.words
    assert "in named" in said.trace


def test_an_attribute_is_named() -> None:
    said = told(lambda: Dataset().PixelSpacing)
    assert said is not None
    assert said.words.startswith("AttributeError: 'Dataset' object has no attribute 'PixelSpacing', at pydicom.dataset")


def test_the_trace_tells_what_led_to_it() -> None:
    def chain() -> None:
        try:
            float("DOE^JANE")
        except ValueError as error:
            raise RuntimeError("cannot measure") from error

    said = told(chain)
    assert said is not None
    assert said.trace.index("ValueError: could not convert string to float") < said.trace.index("RuntimeError: cannot")
    assert "JANE" not in said.trace.replace('float("DOE^JANE")', "")  # a line of this very test
