"""All is in pyproject.toml, but that the folder configs lies inside of the package once it is installed."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["inpaint_module*", "datamodules*"]), "inpaint_module.configs"],
    package_dir={"inpaint_module.configs": "configs"},
)
