"""Fixtures of the benchmark's tests."""

import pytest

from benchmark.cases import image_case, volume_case, write_dataset


@pytest.fixture
def dataset(tmp_path):
    """Three volumes and two images in one folder."""
    cases = [volume_case(f"volume{i}") for i in range(3)] + [image_case(f"image{i}") for i in range(2)]
    return write_dataset(tmp_path / "data", cases)
