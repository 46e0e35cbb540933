"""Train, validate, test and predict from a config: python -m train fit --config configs/quickstart.yaml"""

from __future__ import annotations

from lightning.pytorch import LightningDataModule, LightningModule

from inpaint_module.cli import ResumingCLI, help_of


def main() -> None:
    """Run the command line: fit, validate, test or predict, with the model and the data that the config names."""
    ResumingCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_kwargs=help_of("python -m train", __doc__),
    )


if __name__ == "__main__":
    main()
