"""DD-Ranking: how much of a set's accuracy is its images' own merit (Li et al., 2025).

With accuracies as fractions and w = g = 1/2:

    HLR = acc(all real data, hard labels) - acc(set, hard labels)        less is better
    IOR = acc(set) - acc(random real images)                             more is better
    LRS = f(w IOR - (1 - w) HLR),      f(a) = (e^a - e^-1) / (e - e^-1)
    ARS = f(g IOR + (1 - g) IOR_plain)

LRS, the label-robust score, asks what is left without soft labels; ARS, the augmentation-robust
score, what is left when students see whole images, unmixed and as they are. IOR is under the
method's own protocol, for the random images too. f maps -1 .. 1 to 0 .. 1, and 0 to 0.269.

Departures, each so that the test split decides nothing:
- every student is the one of the last epoch (theirs: the best on the test split);
- the learning rate is the protocol's in every row (theirs: the best of five on the test split, for
  the hard-label and the random row), so both these rows may be lower than theirs;
- the hard-label row has the protocol's views (theirs: no augmentation), and `full_data` is trained
  with the teachers' recipe;
- accuracies enter as fractions (their code, v0.2.0: percents, where e^a leaves the scale).

As theirs, the random row has other images for each student.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

from fedistill.student import Score


def lrs(
    *, full_data: float, hard_label: float, distilled: float, random: float, weight: float = 0.5
) -> float:
    """Label-robust score, 0 to 1, of accuracies as fractions.

    Args:
        full_data: all real data with hard labels.
        hard_label: the set with hard labels.
        distilled: the set under its own protocol.
        random: as many random real images under the same protocol.
        weight: w, of IOR.
    """
    return _score(weight * (distilled - random) - (1 - weight) * (full_data - hard_label))


def ars(
    *,
    distilled: float,
    random: float,
    distilled_plain: float,
    random_plain: float,
    weight: float = 0.5,
) -> float:
    """Augmentation-robust score, 0 to 1, of accuracies as fractions.

    Args:
        distilled: the set under its own protocol.
        random: as many random real images under the same protocol.
        distilled_plain: the set, without augmentation.
        random_plain: the random images, without augmentation.
        weight: g, of the difference with augmentation.
    """
    return _score(weight * (distilled - random) + (1 - weight) * (distilled_plain - random_plain))


def _score(merit: float) -> float:
    """Map -1 .. 1 to 0 .. 1."""
    return (math.exp(merit) - math.exp(-1)) / (math.e - math.exp(-1))


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The rows that the scores are made of, each under the name that `lrs` and `ars` have for it.

    All students have the first model of the config.
    """

    full_data: Score
    hard_label: Score
    distilled: Score
    random: Score
    distilled_plain: Score
    random_plain: Score

    @property
    def hlr(self) -> float:
        """HLR in percentage points."""
        return self.full_data.mean - self.hard_label.mean

    @property
    def ior(self) -> float:
        """IOR in percentage points."""
        return self.distilled.mean - self.random.mean

    @property
    def lrs(self) -> float:
        """Label-robust score of the mean accuracies, 0 to 1."""
        return lrs(
            full_data=self.full_data.mean / 100,
            hard_label=self.hard_label.mean / 100,
            distilled=self.distilled.mean / 100,
            random=self.random.mean / 100,
        )

    @property
    def ars(self) -> float:
        """Augmentation-robust score of the mean accuracies, 0 to 1."""
        return ars(
            distilled=self.distilled.mean / 100,
            random=self.random.mean / 100,
            distilled_plain=self.distilled_plain.mean / 100,
            random_plain=self.random_plain.mean / 100,
        )

    @property
    def rows(self) -> dict[str, Score]:
        """The accuracies, in percent."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json holds."""
        return {
            "hlr": round(self.hlr, 3),
            "ior": round(self.ior, 3),
            "lrs": round(self.lrs, 4),
            "ars": round(self.ars, 4),
            "rows": {name: score.as_dict() for name, score in self.rows.items()},
        }
