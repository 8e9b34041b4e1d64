"""The settings of a search: one frozen record, from the command line or a YAML file, checked when it is made."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from rayml.augmentation import Augmentation
from rayml.backbones import PRECISIONS
from rayml.bundle_json import MODES
from rayml.end_to_end import FineTuning
from rayml.errors import UsageError
from rayml.features import DTYPES
from rayml.head import check_head_settings
from rayml.storage import is_bucket
from tune_jobs.space import Choice, Range, parse_choice

SCHEDULERS = ("asha", "sync", "none")
FEATURES, END_TO_END = MODES
_LEAST_SHARE = 0.0001  # Of a processor: Ray reckons in ten-thousandths.
# What trials may differ in -> whether it takes whole numbers alone.
SEARCHED = {
    "size_inner": True,
    "learning_rate": False,
    "dropout": False,
    "batch_size": True,
    "weight_decay": False,
    "label_smoothing": False,
}
_ALWAYS_LISTS = ("size_inner", "learning_rate")  # In run.json, also where there is one value.
DEFAULT_FINE_TUNE_LEARNING_RATE = 1e-5  # Of Keras' guide to transfer learning; a larger one undoes what was learned.
DEFAULT_GRACE_PERIOD = 2  # After one epoch alone a small learning rate looks worse than it is.


@dataclass(frozen=True)
class SearchSettings:
    """Everything that decides a search. The defaults are the lesson's.

    Arguments:
        data: the folder of labelled photos.
        out: the run's folder, which must not be there yet, but where `resume` is set.
        validation_fraction: the share of photos held back where DATA has no `validation/`, 0 to 1, both excluded.
        skip_unreadable: go on without pictures that cannot be read, and say which.
        backbone: its name, see `rayml.backbones.ARCHITECTURES`.
        weights: `imagenet`, `none` (random) or a Keras weights file; None for imagenet, and tiny's own.
        image_size: the side in pixels of the square that the backbone looks at; None for the architecture's own.
        precision: what the backbone computes in, `float32` or `int8`; see `rayml.quantize`.
        size_inner: units of the head's inner layer, at least 1. This and the next five are searched: each is a value,
            a list of them or a range, see `tune_jobs.space`.
        learning_rate: of Adam, over 0.
        dropout: the share of inner units dropped while training, at least 0 and below 1.
        batch_size: photos a step, at least 1.
        weight_decay: of AdamW, at least 0; see `rayml.training.HeadTrainer.start`.
        label_smoothing: the share of each label spread over all classes in the training loss, at least 0 and below 1.
        num_samples: how many times the grid of the lists is tried, each time with other values out of the ranges; None
            where there are no ranges.
        epochs: of each trial at most, at least 1.
        mode: `features` trains heads on cached features; `end-to-end` the whole network on pictures, see
            `rayml.end_to_end`. What follows down to `mixed_precision` is for the latter.
        augment: what happens to training pictures, as `rayml.augmentation.Augmentation.parse` reads it; empty for
            nothing.
        unfreeze: how many of the backbone's last layers are trained with the head in the last `fine_tune_epochs`; 0
            leaves the backbone frozen.
        fine_tune_epochs: how many of `epochs`, 1 to epochs - 1; None for half of them.
        fine_tune_learning_rate: of Adam in those, over 0; None for 1e-5.
        mixed_precision: train in bfloat16 where that loses nothing; see `rayml.end_to_end.EndToEndTrainer`.
        seed: of the weights' start, the order of the pictures and the split; 0 to 2**31 - 1.
        scheduler: `asha`, `sync` or `none`; see `tune_jobs.scheduler`.
        grace_period: epochs before a trial may be stopped, 1 to epochs; None for 2, or for fewer epochs all of them.
        reduction_factor: the best 1/reduction_factor go on at each rung, at least 2.
        address: `local`, `auto`, or HOST:PORT of a Ray cluster.
        trial_cpus: processors of a trial; None shares them out over the grid.
        trial_gpus: graphics processors of a trial: 0, a share of up to 1, or a whole number.
        max_concurrent: trials at once at most; None for as many as there is room for.
        scale_up_timeout_s: seconds to wait for a cluster that grows by itself to have room for `max_concurrent` trials;
            0 for one that is as large as it will be.
        cache: the folder of each machine for frozen backbones and features.
        storage_path: where machines share both instead, a folder that all of them see or a bucket's address; see
            `rayml.storage`. None for the cache of this machine alone.
        feature_dtype: what features are kept in, `float32` or, for half the room, `float16`; in memory and in the
            bundle they are float32 in any case.
        feature_gpus: the share of a graphics processor that a worker of the feature pass takes where there are any,
            0 to 1; 0 leaves them out of the pass.
        mlflow: the address of an MLflow server that is told of the search, as MLflow takes it.
        resume: go on with the search that was interrupted in `out`, which must be there then.

    Raises:
        UsageError: names the setting, what it may be and what came.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}  # Python 3.10 needs to be told what is in it.

    data: Path
    out: Path
    validation_fraction: float | None = None
    skip_unreadable: bool = False
    backbone: str = "xception"
    weights: str | None = None
    image_size: int | None = None
    precision: str = "float32"
    size_inner: Choice = (10, 100, 1000)
    learning_rate: Choice = (0.0001, 0.001, 0.01, 0.1)
    dropout: Choice = (0.0,)
    batch_size: Choice = (32,)
    weight_decay: Choice = (0.0,)
    label_smoothing: Choice = (0.0,)
    num_samples: int | None = None
    epochs: int = 10
    mode: str = FEATURES
    augment: str = ""
    unfreeze: int = 0
    fine_tune_epochs: int | None = None
    fine_tune_learning_rate: float | None = None
    mixed_precision: bool = False
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
    feature_dtype: str = "float32"
    feature_gpus: float = 1.0
    mlflow: str | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for name in ("data", "out", "cache"):
            if (folder := getattr(self, name)) is not None:
                check_folder(name, folder)
        self._check_space()
        for name in ("epochs", "num_samples", "max_concurrent"):
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
        if self.trial_cpus is not None and not self.trial_cpus >= _LEAST_SHARE:
            raise UsageError(f"trial_cpus must be at least {_LEAST_SHARE:g}. Received: {self.trial_cpus}")
        if not 0 <= self.scale_up_timeout_s < float("inf"):
            raise UsageError(f"scale_up_timeout_s must be at least 0. Received: {self.scale_up_timeout_s}")
        if self.scale_up_timeout_s and self.address == "local":
            raise UsageError("scale_up_timeout_s needs the address of a cluster. Received: address local")
        if not (_is_share(self.trial_gpus) or (self.trial_gpus > 1 and float(self.trial_gpus).is_integer())):
            raise UsageError(
                f"trial_gpus must be 0, a share of {_LEAST_SHARE:g} to 1, or whole. Received: {self.trial_gpus}"
            )
        if not _is_share(self.feature_gpus):
            raise UsageError(
                f"feature_gpus must be 0, or a share of {_LEAST_SHARE:g} to 1. Received: {self.feature_gpus}"
            )
        if self.precision not in PRECISIONS:
            raise UsageError(f"precision must be one of {', '.join(PRECISIONS)}. Received: {self.precision}")
        if self.feature_dtype not in DTYPES:
            raise UsageError(f"feature_dtype must be one of {', '.join(DTYPES)}. Received: {self.feature_dtype}")
        self._check_mode()

    def _check_space(self) -> None:
        fine: dict[str, Any] = {"learning_rate": 1.0, "size_inner": 1, "dropout": 0.0}
        for name, whole in SEARCHED.items():
            given = getattr(self, name)
            try:
                choice = parse_choice(given, whole)
            except ValueError as error:
                raise UsageError(f"{name}: {error}. Received: {_shown(given)}") from None
            object.__setattr__(self, name, choice)
            for value in (choice.low, choice.high) if isinstance(choice, Range) else choice:
                if name != "batch_size":
                    check_head_settings(**{**fine, name: value})
                elif value < 1:
                    raise UsageError(f"batch_size must be at least 1. Received: {value}")
        ranges = [name for name in SEARCHED if isinstance(getattr(self, name), Range)]
        if ranges and self.num_samples is None:
            raise UsageError(
                f"num_samples must say how often to draw from a range. Received: none, with a range for {ranges[0]}",
                "For example: num_samples: 20",
            )
        if not ranges and self.num_samples is not None:
            raise UsageError(
                f"num_samples needs a range to draw from. Received: {self.num_samples}, with lists alone",
                "For example: learning_rate: {loguniform: [1.0e-5, 0.1]}",
            )

    def _check_mode(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"mode must be one of {', '.join(MODES)}. Received: {self.mode}")
        tuning = ("unfreeze", "fine_tune_epochs", "fine_tune_learning_rate")
        if self.mode == FEATURES:
            reasons = {
                "augment": "cached features are those of unchanged pictures",
                **dict.fromkeys(tuning, "cached features come from the backbone as it was"),
                "mixed_precision": "a head on cached features is trained in float32",
            }
            for name, reason in reasons.items():
                if (value := getattr(self, name)) != getattr(SearchSettings, name):
                    raise UsageError(
                        f"{name} needs mode end-to-end, since {reason}. Received: {value} in mode features",
                        f"Add --mode end-to-end, which takes far longer, or leave {name} out.",
                    )
        elif self.precision != SearchSettings.precision:
            raise UsageError(
                f"precision needs mode features. Received: {self.precision} in mode {self.mode}",
                "Leave precision out: a network that is trained on pictures computes in float32.",
            )
        elif self.feature_dtype != SearchSettings.feature_dtype:
            raise UsageError(
                f"feature_dtype needs mode features. Received: {self.feature_dtype} in mode {self.mode}",
                "Leave feature_dtype out: pictures are kept as they are decoded.",
            )
        Augmentation.parse(self.augment)
        if self.unfreeze < 0:
            raise UsageError(f"unfreeze must be at least 0. Received: {self.unfreeze}")
        for name in tuning[1:]:
            if not self.unfreeze and getattr(self, name) is not None:
                raise UsageError(f"{name} needs layers to train. Received: {getattr(self, name)} with unfreeze 0")
        if self.unfreeze and not 1 <= self._fine_tune_epochs < self.epochs:
            raise UsageError(
                f"fine_tune_epochs must be 1 to {self.epochs - 1}, since the head learns alone before. "
                f"Received: {self._fine_tune_epochs} of {self.epochs} epochs"
            )
        _ = self.fine_tuning  # Checks its rate.

    @property
    def _fine_tune_epochs(self) -> int:
        return max(1, self.epochs // 2) if self.fine_tune_epochs is None else self.fine_tune_epochs

    @property
    def fine_tuning(self) -> FineTuning | None:
        """How the backbone's top is trained; None where it stays frozen."""
        if not self.unfreeze:
            return None
        rate = self.fine_tune_learning_rate
        rate = DEFAULT_FINE_TUNE_LEARNING_RATE if rate is None else rate
        return FineTuning(self.unfreeze, self.epochs - self._fine_tune_epochs, rate)

    @property
    def first_rung(self) -> int:
        """The epoch after which a trial may be stopped for the first time."""
        return min(DEFAULT_GRACE_PERIOD, self.epochs) if self.grace_period is None else self.grace_period

    @property
    def trials(self) -> int:
        """How many cells there are to try."""
        choices = [getattr(self, name) for name in SEARCHED]
        lists = [choice for choice in choices if not isinstance(choice, Range)]
        return math.prod(map(len, lists)) * (self.num_samples or 1)

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
        for name in SEARCHED:
            choice = getattr(self, name)
            if isinstance(choice, Range):
                plain[name] = choice.to_json()
            elif len(choice) == 1 and name not in _ALWAYS_LISTS:
                (plain[name],) = choice
        for passing in ("cache", "mlflow", "resume"):  # An address may hold a password.
            plain.pop(passing)
        return {**plain, "weights": Path(self.weights).name if self.weights else None}


def _is_share(value: float) -> bool:
    return value == 0 or _LEAST_SHARE <= value <= 1


def check_folder(name: str, path: Path) -> None:
    """Refuse an address where a folder is meant: as a path it would be a folder `s3:` of this machine.

    Raises:
        UsageError: it is one.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise UsageError(
            f"{name} must be a folder. Received: {path}, which is an address",
            "Only storage_path may be one; RUN and the cache are folders of this machine, or mounted there.",
        )


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
    except (yaml.YAMLError, ValueError) as error:  # The latter by bytes that are no text, and dates that do not exist.
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

    values, faults = dict(values), []
    for name, whole in SEARCHED.items():
        if name in values:
            try:
                values[name] = parse_choice(values[name], whole)
            except ValueError as error:
                faults.append(f"{name}: {error}. Received: {_shown(values.pop(name))}")
    numbers = [field.name for field in fields(SearchSettings) if str(field.type).startswith(("int", "float"))]
    for name in numbers:
        if isinstance(values.get(name), bool):  # YAML's yes and no, which Python counts as 1 and 0.
            faults.append(f"{name}: input should be a number. Received: {values.pop(name)}")
    try:
        settings = pydantic.TypeAdapter(SearchSettings).validate_python(values)
    except pydantic.ValidationError as error:
        faults += [_fault(fault) for fault in error.errors()]
    if faults:
        known = ", ".join(field.name for field in fields(SearchSettings))
        raise UsageError(f"{source}: {'; '.join(faults)}", f"The settings are {known}.")
    return settings


def _fault(fault: Any) -> str:
    """What pydantic found, in a few words of our own."""
    name, received = ".".join(map(str, fault["loc"])), _shown(fault["input"])
    if fault["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(name, [field.name for field in fields(SearchSettings)], n=1)
        meant = f"; did you mean {near[0]}?" if near else "."
        return f"{name}: is no setting{meant} Received: {received}"
    if fault["type"].startswith("missing"):
        return f"{name}: is needed"
    message = re.split(r", | for <class", fault["msg"])[0]  # What follows says how pydantic tried.
    return f"{name}: {message[0].lower()}{message[1:]}. Received: {received}"


def _shown(value: Any) -> str:
    """A value in one line."""
    return " ".join(str(list(value) if isinstance(value, tuple) else value).split())[:200]
