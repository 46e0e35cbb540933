"""What config files say of a run, beside its model: the data module and the precision."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule


def data_from_configs(configs: Sequence[Path], overrides: Sequence[str] = ()) -> LightningDataModule:
    """The data module of config files, the later over the earlier, and of options such as `--data.batch_size=2`.

    Raises:
        ValueError: no data in them.
    """
    parser, parsed = ArgumentParser(exit_on_error=False), None
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    for path in configs:
        content = yaml.safe_load(path.read_text()) or {}
        if "data" in content:
            parsed = parser.parse_object({"data": content["data"]}, parsed)
    if parsed is None:
        raise ValueError(f"config: expected data in {', '.join(map(str, configs))}, got none")
    parsed = parser.parse_args(list(overrides), namespace=parsed)
    return (getattr(parser, "instantiate", None) or parser.instantiate_classes)(parsed).data  # its name before 4.49


def precision_of(configs: Sequence[Path]) -> str:
    """`trainer.precision` of config files, of which the last that names one counts."""
    trainers = [(yaml.safe_load(path.read_text()) or {}).get("trainer") or {} for path in configs]
    return str(next((each["precision"] for each in reversed(trainers) if each.get("precision")), "32-true"))


def cause_of(error: BaseException) -> BaseException:
    """What is behind jsonargparse's list of all that it tried."""
    while "Union subtypes" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return error
