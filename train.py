"""Train, validate, test and predict from a config: python train.py fit --config configs/quickstart.yaml"""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI

from inpaint_module.cli import ResumingCLI


def main() -> LightningCLI:
    """Run the command line: fit, validate, test or predict, with the model and the data that the config names."""
    return ResumingCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
    )


if __name__ == "__main__":
    main()
