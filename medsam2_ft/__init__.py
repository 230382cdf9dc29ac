"""Fine-tune, benchmark and deploy SAM2 on medical images and videos."""

__version__ = "0.1.0"
