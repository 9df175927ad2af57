"""What a claim file declares.

A claim is one falsifiable sentence, the arms it compares, and the rule that turns measurements into a verdict. The
claim file adds one pure function, ``run(key, arm, *, steps, **settings) -> figures``, which trains one arm once.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Direction = Literal["lower", "higher"]
Figure = tuple[str, Direction]
"""A key of what ``run`` returns, and which way is better."""


@dataclass(frozen=True)
class Criterion:
    """One measured quantity and what it has to show. Effects are positive where the method is better.

    Attributes:
        metric: what the score is, with its unit.
        better: which way is better.
        worst: the score of a run that diverged, such as the loss of a uniform guess; no score counts as worse.
        min_effect: superiority: the effect has to reach this, and its interval has to exclude zero.
        margin: non-inferiority instead: the interval has to stay above ``-margin``.
        relative: effects are relative to the baseline's score, otherwise in the metric's unit.
        score: key of the score in what ``run`` returns.
        tuned_on: figure by which each arm's hyperparameters are chosen; by default the claim's own.
        baselines: the arms to beat; for a further criterion by default the claim's own.
    """

    metric: str
    better: Direction
    worst: float
    min_effect: float | None = None
    margin: float | None = None
    relative: bool = True
    score: str = "score"
    tuned_on: Figure | None = None
    baselines: tuple[str, ...] | None = None

    def __post_init__(self):
        if (self.min_effect is None) == (self.margin is None):
            raise ValueError(
                f"criterion {self.metric!r} needs either min_effect (superiority) or margin (non-inferiority), "
                f"got min_effect={self.min_effect} and margin={self.margin}"
            )
        bound = self.margin if self.min_effect is None else self.min_effect
        if bound < 0:
            raise ValueError(f"min_effect and margin must be >= 0, got {bound} for {self.metric!r}")
        if self.better not in ("lower", "higher"):
            raise ValueError(f"better must be 'lower' or 'higher', got {self.better!r} for {self.metric!r}")


@dataclass(frozen=True)
class Comparison:
    """A comparison reported beside the verdict: another baseline, another condition, the sceptic's control.

    Attributes:
        says: what is compared, in a few words.
        baselines: the arms to beat; by default those of each criterion.
        method: the arm judged; the claim's by default.
        settings: keyword arguments of ``run`` that hold for all arms of the comparison (the condition). What is tuned
            otherwise, or is the axis of the claim, is fixed where it stands here.
        curves: whether its learning curves are plotted too, in a panel of their own.
    """

    says: str
    baselines: tuple[str, ...] | None = None
    method: str | None = None
    settings: Mapping[str, float] = field(default_factory=dict)
    curves: bool = False


@dataclass(frozen=True, kw_only=True)
class Claim(Criterion):
    """A paper's central claim, and how it is measured. The criterion's own fields are the main criterion.

    Attributes:
        slug: the name of the claim file.
        paper: its title.
        arxiv: its arXiv id, or the venue where there is none.
        says: the claim in one falsifiable sentence.
        method: the arm that is claimed to be better than the strongest of the ``baselines``.
        grid: hyperparameters tuned for every arm alike. All arms try every point of the grid.
        arm_grid: grids of single arms in place of ``grid``, for a constant of their own. The number of points must be
            the same for every arm: that is the budget.
        axis: hyperparameters that are the axis of the claim: not tuned, the score is the mean over their values.
        variants: further arms, ``{name: (arm, settings)}``: an arm of ``run`` with some keyword arguments fixed.
        also: further criteria; the claim holds only if all hold, and fails if any fails.
        beside: comparisons that are reported and have no part in the verdict.
        same_runs: methods applied after training: one run serves every arm, ``run`` takes no ``arm`` and its figures
            are ``{arm: value}``. Hyperparameters are then those best for the strongest baseline.
        finding: what is made of the verdict, in particular why a claim fails although the code is right.
        one_device: whether to run on one device only: jaxlib's LAPACK (SVD, QR, eigenvalues) hangs when several CPU
            devices of a process call it at once.
        steps: budget of one run, passed to ``run``.
        smoke_steps: the same for ``--smoke``.
        smoke_sizes: arguments of ``run`` that stay at their defaults but for ``--smoke``: numbers of samples, say. They
            may decide shapes.
        seeds: runs per arm that are measured.
        tuning_seeds: runs per arm and grid point for tuning.
    """

    slug: str
    paper: str
    arxiv: str
    says: str
    method: str
    grid: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    arm_grid: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    axis: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    variants: Mapping[str, tuple[str, Mapping[str, float]]] = field(default_factory=dict)
    also: tuple[Criterion, ...] = ()
    beside: tuple[Comparison, ...] = ()
    same_runs: bool = False
    finding: str = ""
    one_device: bool = False
    steps: int
    smoke_steps: int = 4
    smoke_sizes: Mapping[str, int] = field(default_factory=dict)
    seeds: int = 8
    tuning_seeds: int = 4

    def __post_init__(self):
        super().__post_init__()
        if not self.baselines:
            raise ValueError(f"{self.slug}: a claim needs at least one baseline")
        if self.tuning_seeds < 4:
            raise ValueError(f"{self.slug}: tuning_seeds must be >= 4, got {self.tuning_seeds}")
        if self.same_runs and self.arm_grid:
            raise ValueError(f"{self.slug}: arms that share their runs share their grid too, got arm_grid")
        budgets = {arm: len(points(self.grid_of(arm))) for arm in self.arms}
        if len(set(budgets.values())) > 1:
            raise ValueError(f"{self.slug}: every arm must be tuned on the same budget, got grid points {budgets}")
        for arm in self.arms:
            both = set(self.grid_of(arm)) & set(self.axis)
            if both:
                raise ValueError(f"{self.slug}: {sorted(both)} cannot be tuned and be the axis of the claim")

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm that is measured, the main comparison's first."""
        names = [*self.baselines, self.method]
        for part in (*self.also, *self.beside):
            names += part.baselines or ()
        names += [comparison.method for comparison in self.beside if comparison.method]
        return tuple(dict.fromkeys(names))

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The main criterion and the further ones."""
        return (self, *self.also)

    def tuning_figure(self, criterion: Criterion) -> Figure:
        """The figure that decides the arms' hyperparameters for a criterion."""
        return criterion.tuned_on or self.tuned_on or (self.score, self.better)

    def grid_of(self, arm: str) -> Mapping[str, tuple[float, ...]]:
        """What is tuned for an arm; a variant is tuned like the arm it is made of."""
        base = self.resolve(arm)[0]
        return self.arm_grid.get(arm, self.arm_grid.get(base, self.grid))

    def resolve(self, arm: str) -> tuple[str, dict[str, float]]:
        """The arm that ``run`` knows, and the settings fixed by the variant."""
        base, settings = self.variants.get(arm, (arm, {}))
        return base, dict(settings)


def points(grid: Mapping[str, tuple[float, ...]]) -> list[dict[str, float]]:
    """All combinations of the grid's values, the last name changing fastest; one empty point for no grid."""
    combinations: list[dict[str, float]] = [{}]
    for name, values in grid.items():
        combinations = [{**point, name: value} for point in combinations for value in values]
    return combinations
