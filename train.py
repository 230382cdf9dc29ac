"""Fine-tune SAM2: compose the config, build data, module and trainer, fit, validate, export.

python train.py data.root=DIR model=sam2.1_tiny trainer=gpu trainer.devices=4
"""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

from medsam2_ft.config import check_overrides
from medsam2_ft.errors import exit_on_user_error

CONFIG_DIR = Path(__file__).resolve().parent / "configs"


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="train")
def main(cfg: DictConfig) -> float:
    """Run one training; returns the best validation DSC, which sweepers maximise."""
    from medsam2_ft.training.run import train

    with exit_on_user_error():
        return train(cfg, run_dir=Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir))


if __name__ == "__main__":
    with exit_on_user_error():
        check_overrides(sys.argv[1:], config_dir=CONFIG_DIR, config_name="train")
    main()
