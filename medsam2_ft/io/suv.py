"""PET activity to standardised uptake values by body weight.

The rule is QIBA's vendor-neutral pseudo-code (http://qibawiki.rsna.org/index.php/Standardized_Uptake_Value_(SUV)).
"""

import logging
from datetime import datetime, timedelta

import pydicom

log = logging.getLogger(__name__)


def suv_factor(dataset: pydicom.Dataset) -> float:
    """What rescaled values of a PET series are multiplied with to give SUV (g/ml).

    Args:
        dataset: header of any of its slices.

    Returns:
        the factor; 1 when values are SUV already or the tags do not suffice, which is logged.
    """
    units = str(dataset.get("Units", ""))
    if units == "GML":
        return 1.0
    if units == "CNTS" and (0x7053, 0x1000) in dataset:
        return float(dataset[0x7053, 0x1000].value)
    factor = _from_dose(dataset) if units == "BQML" else None
    if factor is None:
        log.warning("PET series stays in '%s': its tags do not allow SUV", units or "unknown units")
        return 1.0
    return factor


def _from_dose(dataset: pydicom.Dataset) -> float | None:
    tracers = dataset.get("RadiopharmaceuticalInformationSequence")
    if not tracers or not dataset.get("PatientWeight"):
        return None
    dose, half_life = tracers[0].get("RadionuclideTotalDose"), tracers[0].get("RadionuclideHalfLife")
    if not dose or not half_life:
        return None
    correction = str(dataset.get("DecayCorrection", ""))
    elapsed = 0.0
    if correction == "START":
        waited = _seconds_from_injection(dataset, tracers[0])
        if waited is None:
            return None
        elapsed = waited
    elif correction != "ADMIN":
        return None
    left: float = float(dose) * 2.0 ** (-elapsed / float(half_life))
    return float(dataset.PatientWeight) * 1000.0 / left


def _seconds_from_injection(dataset: pydicom.Dataset, tracer: pydicom.Dataset) -> float | None:
    scan = _moment(str(dataset.get("SeriesDate", "")), str(dataset.get("SeriesTime", "")))
    stamp = str(tracer.get("RadiopharmaceuticalStartDateTime") or "")
    time = stamp[8:] or str(tracer.get("RadiopharmaceuticalStartTime", ""))
    injected = _moment(stamp[:8] or str(dataset.get("SeriesDate", "")), time)
    if scan is None or injected is None:
        return None
    waited = scan - injected
    # A time without a date that lies after the scan belongs to the evening before.
    return (waited if waited >= timedelta(0) else waited + timedelta(days=1)).total_seconds()


def _moment(date: str, time: str) -> datetime | None:
    try:
        return datetime.strptime(f"{date}{time[:6]}", "%Y%m%d%H%M%S")
    except ValueError:
        return None
