"""NRRD and MetaImage through SimpleITK, as a reader for MONAI's LoadImage.

SimpleITK speaks LPS and indexes numpy arrays (k, j, i); both are undone here, so that the rest sees (i, j, k) and RAS.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ImageReader
from numpy.typing import NDArray

from medsam2_ft.errors import DataError

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class ItkReader(ImageReader):  # type: ignore[misc]
    """Reads .nrrd, .nhdr, .mha and .mhd without MONAI's dependency on the much larger `itk`."""

    def verify_suffix(self, filename: Sequence[Path | str] | Path | str) -> bool:
        """Whether the name is one this reader is for."""
        return str(filename).lower().endswith((".nrrd", ".nhdr", ".mha", ".mhd"))

    def read(self, data: Sequence[Path | str] | Path | str, **kwargs: Any) -> Any:
        """Open one file."""
        name = data if isinstance(data, str | Path) else data[0]
        return _simple_itk().ReadImage(str(name), **kwargs)

    def get_data(self, img: Any) -> tuple[NDArray[Any], dict[str, Any]]:
        """(i, j, k) array and the meta data MONAI expects."""
        sitk = _simple_itk()
        if img.GetDimension() != 3 or img.GetNumberOfComponentsPerPixel() != 1:
            raise DataError(
                f"A volume has 3 axes and one value a voxel; this file has {img.GetDimension()} axes and "
                f"{img.GetNumberOfComponentsPerPixel()} values a voxel."
            )
        array = sitk.GetArrayFromImage(img).transpose(2, 1, 0)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(img.GetDirection(), (3, 3)) * np.asarray(img.GetSpacing())
        affine[:3, 3] = img.GetOrigin()
        affine = _LPS_TO_RAS @ affine
        return array, {
            "affine": affine, "original_affine": affine.copy(), "spatial_shape": np.asarray(array.shape),
            "original_channel_dim": float("nan"), "space": "RAS",
        }  # fmt: skip


def write_array(path: Path, array: NDArray[Any], affine: NDArray[np.float64]) -> None:
    """Write an (i, j, k) array whose index maps to RAS mm by `affine`; SimpleITK's format follows the file name."""
    sitk = _simple_itk()
    lps = _LPS_TO_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing([float(step) for step in spacing])
    image.SetOrigin([float(value) for value in lps[:3, 3]])
    image.SetDirection([float(value) for value in (lps[:3, :3] / spacing).ravel()])
    sitk.WriteImage(image, str(path), useCompression=True)


def _simple_itk() -> Any:
    import SimpleITK

    # Its C++ warnings go to stderr past every logger, and repeat what our own checks say in one sentence.
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK
