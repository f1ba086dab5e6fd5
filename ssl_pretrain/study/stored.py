"""What a study's own files must hold to be read again: they may be edited, damaged, or of another program."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from ssl_pretrain.study.arms import Arm, turns_of
from ssl_pretrain.study.design import Size, StudySettings, runs_of

Dice = Annotated[float, Field(ge=0, le=1)] | None
"""None where neither prediction nor truth has the label."""


class StoredFold(BaseModel):
    """Cases of a fold."""

    train: list[str] = Field(min_length=1)
    validation: list[str] = Field(min_length=1)


class StoredDataset(BaseModel):
    """The dataset of a study."""

    name: str
    labels: dict[str, str]
    folds: dict[int, StoredFold]


class StoredSize(BaseModel):
    """An amount of training data."""

    label: str
    cases: dict[int, Annotated[int, Field(gt=0)]]


class StoredStudy(BaseModel):
    """``study.json`` as far as it is read again; the tables in it are made anew."""

    settings: StudySettings
    dataset: StoredDataset
    arms: list[Arm] = Field(min_length=1)
    sizes: list[StoredSize]
    subsets: list[tuple[int, int, int, int]]
    begun: str
    versions: dict[str, Any]
    machine: dict[str, Any]
    warnings: list[str] = []

    @property
    def amounts(self) -> list[Size]:
        """The amounts of training data."""
        return [Size(size.label, size.cases) for size in self.sizes]

    @field_validator("settings", mode="before")
    @classmethod
    def _known(cls, settings: Any) -> Any:
        known = [field.name for field in fields(StudySettings)]
        if isinstance(settings, dict) and (unknown := [name for name in settings if name not in known]):
            raise ValueError(f"unknown settings {', '.join(unknown)}; there are {', '.join(known)}")
        return settings

    @model_validator(mode="after")
    def _fits_together(self) -> StoredStudy:
        folds = set(self.settings.folds)
        if not folds <= self.dataset.folds.keys() or any(folds - size.cases.keys() for size in self.sizes):
            raise ValueError("the folds of settings, dataset and sizes are not the same")
        names = {arm.name for arm in self.arms}
        if len(names) < len(self.arms) or not {arm.baseline for arm in self.arms if arm.baseline} <= names:
            raise ValueError("two arms have one name, or one is compared with none of them")
        # Each seed of each fold has a subset at least; asked first, since runs are listed one by one.
        too_many = self.settings.seeds * len(folds) > len(self.subsets)
        runs = [] if too_many else runs_of(turns_of(self.arms), self.settings, self.amounts)
        if not runs or not {run.subset for run in runs} <= {(f, s, n) for f, s, n, _ in self.subsets}:
            raise ValueError("subsets are not those of the runs that settings, arms and sizes ask for")
        return self


class Seconds(BaseModel):
    """Times of a run that are summed up."""

    process: Annotated[float, Field(ge=0)]


class Trained(BaseModel):
    """Length of a run."""

    steps: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=0)]


class Device(BaseModel):
    """What a run ran on."""

    device: str


class Distance(BaseModel):
    """How far a vector of weights is from another.

    Attributes:
        distance: length of the difference, in lengths of the vector at the start; None where that is 0 or the weights
            are not finite.
        cosine: of the angle between both; None likewise.
    """

    distance: Annotated[float, Field(ge=0)] | None
    cosine: Annotated[float, Field(ge=-1, le=1)] | None


class ValidationDice(BaseModel):
    """Dice of a network on the validation cases."""

    dice: Annotated[float, Field(ge=0, le=1)]
    labels: dict[str, Dice]
    per_case: dict[str, dict[str, Dice]] = Field(min_length=1)

    @model_validator(mode="after")
    def _of_the_same_labels(self) -> ValidationDice:
        if any(values.keys() != self.labels.keys() for values in self.per_case.values()):
            raise ValueError("the labels of per_case are not those of labels")
        return self


class Point(ValidationDice):
    """A point of a curve, or a probe: Dice after so many optimiser steps."""

    steps: Annotated[int, Field(gt=0)]
    seconds: Annotated[float, Field(ge=0)]


class Moved(BaseModel):
    """How far the weights of each part of the network are from where they began."""

    steps: Annotated[int, Field(gt=0)]
    parts: dict[str, Distance]


class Watched(BaseModel):
    """What is noted while a run trains."""

    probe: Point | None = None
    curve: list[Point] = []
    movement: list[Moved] = []


class RunResult(ValidationDice, Watched):
    """``result.json`` of a run as far as it is read again."""

    seconds: Seconds
    trained: Trained
    machine: Device


class FailedRun(BaseModel):
    """``failure.json`` of a run."""

    error: str


def _share_or_nan(dice: float) -> float:
    if not (math.isnan(dice) or 0 <= dice <= 1):
        raise ValueError("must be between 0 and 1, or NaN")
    return dice


class Metrics(BaseModel):
    """Of a label in a case: voxels that have it in the truth, and Dice, NaN where neither side has it."""

    n_ref: Annotated[int, Field(ge=0)]
    dice: Annotated[float, AfterValidator(_share_or_nan)] = Field(alias="Dice")


class PredictedCase(BaseModel):
    """A case in nnU-Net's ``summary.json``."""

    metrics: dict[str, Metrics]
    prediction_file: str


class PredictionSummary(BaseModel):
    """What is read of nnU-Net's ``summary.json``."""

    metric_per_case: list[PredictedCase]
