"""Train, validate, test and predict from a config: python -m train fit --config configs/quickstart.yaml"""

from __future__ import annotations

import sys

from inpaint_module.commands.errors import GOES_ON, exit_code_of, take_debug


def _run() -> int:
    from lightning.pytorch import LightningDataModule, LightningModule

    from inpaint_module.cli import ResumingCLI, help_of

    ResumingCLI(
        LightningModule,
        LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        parser_kwargs=help_of("python -m train", __doc__),
    )
    return 0


def main() -> int:
    """Run the command line: fit, validate, test or predict, with the model and the data that the config names.

    Returns:
        The exit code: 0, 1 after an error, 2 for options that are not there, 130 after Ctrl-C.
    """
    take_debug(sys.argv)
    return exit_code_of(_run, GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
