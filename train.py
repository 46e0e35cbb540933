"""Train, validate, test and predict from a config, in a clone: python train.py fit --config configs/quickstart.yaml

Installed, `inpaint fit` does the same.
"""

from __future__ import annotations

import sys

from inpaint_module.cli.errors import GOES_ON, exit_code_of, take_debug


def _run() -> int:
    from inpaint_module.cli.training import run

    return run("python -m train")


def main() -> int:
    """Run the command line: fit, validate, test or predict, with the model and the data that the config names.

    Returns:
        The exit code: 0, 1 after an error, 2 for options that are not there, 130 after Ctrl-C.
    """
    take_debug(sys.argv)
    return exit_code_of(_run, GOES_ON)


if __name__ == "__main__":
    sys.exit(main())
