"""`python -m inpaint_module` is the command `inpaint`."""

import sys

from inpaint_module.cli import main

if __name__ == "__main__":
    sys.exit(main())
