"""What config files say of a run, beside its model: the data module and the precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import LightningDataModule

from inpaint_module.commands.config_files import make_parts, read_config, read_parts


def data_from_configs(configs: Sequence[Path], overrides: Sequence[str] = ()) -> LightningDataModule:
    """The data module of config files, the later over the earlier, and of options such as `--data.batch_size=2`.

    Raises:
        ValueError: no data in them.
    """
    values = read_parts(configs, overrides, data=LightningDataModule)
    return make_parts(values, data=LightningDataModule).data


def precision_of(configs: Sequence[Path]) -> str:
    """`trainer.precision` of config files, of which the last that names one counts."""
    trainers = [read_config(path).get("trainer") or {} for path in configs]
    return str(next((each["precision"] for each in reversed(trainers) if each.get("precision")), "32-true"))
