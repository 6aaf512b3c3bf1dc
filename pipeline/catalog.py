"""This file turns data_catalog.yaml into frozen, checked settings; after it nobody sees a dict."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Window:
    """A display range: [level - width/2, level + width/2] HU is mapped to [0, 1]."""

    name: str
    level_hu: float
    width_hu: float


@dataclass(frozen=True, slots=True)
class Reading:
    """How a DICOM file is read: part of the fingerprint of every slice."""

    missing_rescale: Literal["reject", "identity"] = "reject"
    repair: Literal["none", "rsna_12bit_wrap"] = "none"
    patient_ids: Literal["hash", "keep"] = "hash"
