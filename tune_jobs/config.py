"""The settings of a search: one frozen record, from the command line or a YAML file, checked when it is made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from rayml.errors import UsageError
from rayml.head import check_head_settings
from rayml.storage import is_bucket

SCHEDULERS = ("asha", "sync", "none")
DEFAULT_GRACE_PERIOD = 2  # After one epoch alone a small learning rate looks worse than it is.


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides a search. The defaults are the lesson's.

    Arguments:
        data: the folder of labelled photos.
        out: the run's folder, which must not be there yet, but where `resume` is set.
        validation_fraction: the share of photos held back where DATA has no `validation/`, 0 to 1, both excluded.
        skip_unreadable: go on without pictures that cannot be read, and say which.
        backbone, weights, image_size: see `rayml.backbones.backbone_spec`.
        size_inner, learning_rate: the grid, each at least one value.
        dropout: of every trial, 0 <= dropout < 1.
        epochs, batch_size: at least 1.
        seed: of the weights' start, the order of the pictures and the split; 0 to 2**31 - 1.
        scheduler: `asha`, `sync` or `none`; see `tune_jobs.scheduler`.
        grace_period: epochs before a trial may be stopped, 1 to epochs; None for 2, or for fewer epochs all of them.
        reduction_factor: the best 1/reduction_factor go on at each rung, at least 2.
        address: `local`, `auto`, or HOST:PORT of a Ray cluster.
        trial_cpus: processors of a trial; None shares them out over the grid.
        trial_gpus: graphics processors of a trial, fractions allowed.
        max_concurrent: trials at once at most; None for as many as there is room for.
        scale_up_timeout_s: seconds to wait for a cluster that grows by itself to have room for `max_concurrent` trials;
            0 for one that is as large as it will be.
        cache: the folder of each machine for frozen backbones and features.
        storage_path: where machines share both instead, a folder that all of them see or a bucket's address; see
            `rayml.storage`. None for the cache of this machine alone.
        feature_gpus: the share of a graphics processor that a worker of the feature pass takes where there are any,
            0 to 1; 0 leaves them out of the pass.
        resume: go on with the search that was interrupted in `out`, which must be there then.

    Raises:
        UsageError: names the setting, what it may be and what came.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    data: Path
    out: Path
    validation_fraction: float | None = None
    skip_unreadable: bool = False
    backbone: str = "xception"
    weights: str | None = None
    image_size: int | None = None
    size_inner: tuple[int, ...] = (10, 100, 1000)
    learning_rate: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1)
    dropout: float = 0.0
    epochs: int = 10
    batch_size: int = 32
    seed: int = 1
    scheduler: str = "asha"
    grace_period: int | None = None
    reduction_factor: float = 3.0
    address: str = "local"
    trial_cpus: float | None = None
    trial_gpus: float = 0.0
    max_concurrent: int | None = None
    scale_up_timeout_s: float = 0.0
    cache: Path | None = None
    storage_path: str | None = None
    feature_gpus: float = 1.0
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("size_inner", "learning_rate"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UsageError(f"{name} must be one or more values, each once. Received: {list(values)}")
        for size in self.size_inner:
            for rate in self.learning_rate:
                check_head_settings(learning_rate=rate, size_inner=size, dropout=self.dropout)
        for name in ("epochs", "batch_size", "max_concurrent"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} must be at least 1. Received: {value}")
        if not 0 <= self.seed < 2**31:
            raise UsageError(f"seed must be 0 to {2**31 - 1}. Received: {self.seed}")
        if self.validation_fraction is not None and not 0 < self.validation_fraction < 1:
            raise UsageError(f"validation_fraction must be between 0 and 1. Received: {self.validation_fraction}")
        if self.scheduler not in SCHEDULERS:
            raise UsageError(f"scheduler must be one of {', '.join(SCHEDULERS)}. Received: {self.scheduler}")
        if self.grace_period is not None and not 1 <= self.grace_period <= self.epochs:
            raise UsageError(f"grace_period must be 1 to epochs={self.epochs}. Received: {self.grace_period}")
        if not 2 <= self.reduction_factor < math.inf:
            raise UsageError(f"reduction_factor must be at least 2 and finite. Received: {self.reduction_factor}")
        if self.trial_cpus is not None and not self.trial_cpus > 0:
            raise UsageError(f"trial_cpus must be over 0. Received: {self.trial_cpus}")
        if not 0 <= self.scale_up_timeout_s < float("inf"):
            raise UsageError(f"scale_up_timeout_s must be at least 0. Received: {self.scale_up_timeout_s}")
        if self.scale_up_timeout_s and self.address == "local":
            raise UsageError("scale_up_timeout_s needs the address of a cluster. Received: address local")
        if not self.trial_gpus >= 0:
            raise UsageError(f"trial_gpus must be at least 0. Received: {self.trial_gpus}")
        if not 0 <= self.feature_gpus <= 1:
            raise UsageError(f"feature_gpus must be 0 to 1. Received: {self.feature_gpus}")

    @property
    def first_rung(self) -> int:
        """The epoch after which a trial may be stopped for the first time."""
        return min(DEFAULT_GRACE_PERIOD, self.epochs) if self.grace_period is None else self.grace_period

    @property
    def trials(self) -> int:
        """The number of cells of the grid."""
        return len(self.size_inner) * len(self.learning_rate)

    @property
    def shares_bank(self) -> bool:
        """Whether every machine of the search reads the same bank, so that no vectors have to be sent to trials."""
        return self.storage_path is not None or self.address == "local"

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values for run.json; folders by their names alone, so that a run may be moved."""
        plain = asdict(self)
        plain |= {"data": self.data.name, "out": self.out.name}
        if not (self.storage_path and is_bucket(self.storage_path)):  # A bucket's address is good everywhere.
            plain["storage_path"] = None
        for passing in ("cache", "resume"):
            plain.pop(passing)
        return {**plain, "weights": Path(self.weights).name if self.weights else None}


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML file whose keys are the fields of `SearchSettings`; nothing is checked but that it is one.

    Raises:
        UsageError: no such file, or not YAML with keys.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UsageError(f"the settings must be a readable file. Received: {path} ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} must be YAML. Received: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} must hold `setting: value` lines. Received: {type(values).__name__}")
    return values


def make_settings(values: dict[str, Any], source: str) -> SearchSettings:
    """Settings from plain values.

    Arguments:
        values: by field name.
        source: where they come from, for the error.

    Raises:
        UsageError: an unknown or missing setting, or a value of the wrong kind or out of range; each is named.
    """
    import pydantic

    try:
        return pydantic.TypeAdapter(SearchSettings).validate_python(values)
    except pydantic.ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        known = ", ".join(field.name for field in fields(SearchSettings))
        raise UsageError(f"{source}: {'; '.join(faults)}", f"The settings are {known}.") from None
