"""What pyproject.toml cannot say: configs/ and checkpoints/ travel inside the installed package."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["medsam2_ft*", "data_prep*"]),
        "medsam2_ft.configs",
        "medsam2_ft.checkpoints",
    ],
    package_dir={"medsam2_ft.configs": "configs", "medsam2_ft.checkpoints": "checkpoints"},
    package_data={
        "medsam2_ft": [
            "benchmark/templates/*",
            "data/templates/*",
            "deploy/**/*.html",
            "deploy/**/*.css",
            "deploy/**/*.js",
        ],
        "medsam2_ft.configs": ["*.yaml", "*/*.yaml"],
        "medsam2_ft.checkpoints": ["sam2.1_nano.pt", "README.md"],
        "data_prep.examples": ["labels/*.yaml"],
    },
)
