"""The specification of a long-horizon audit: stages, competing selectors, and how they are measured.

audits/NAME/audit.json                 the recipe it was started with
            cells/PATH-t1.json         the results of one selector and seed at a stage; exists once complete
            summed.json                which cells the scorecard covers; exists once the audit has ended
            models/PATH-t1/            a model between two stages, while it is needed; carried/: its adapter
            stages/t1/, work/PATH-t2/  workspaces with one stage's samples, in which its cells are computed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from curate.errors import CurateError
from curate.kinds.metric import Metric
from curate.kinds.score import Score
from curate.kinds.selector import Selector
from curate.kinds.weighting import Weighting
from curate.models.choice import ModelChoice
from curate.numerics.long_horizon.measures import Measures as Measures
from curate.store.audit_recipe import AuditRecipe
from curate.tables.inputs import model_recipe
from curate.training.settings import TrainSettings

# A stage's own target; the val samples of later stages' targets (at the last stage: of all stages' targets); the
# samples trained on in earlier stages. And what the branch before a stage is evaluated on, which no selector sees.
OWN, FUTURE, PAST, PROBE = "own", "future", "past", "probe"
TARGETS = (OWN, FUTURE, PAST)


@dataclass(frozen=True)
class Stage:
    """One stage of the sequence. where: SQL over `samples` of the workspace, the stage's samples. target: what it is
    evaluated on."""

    name: str
    where: str
    target: str


@dataclass(frozen=True)
class Scoring:
    """A score of a stage's samples that a selector uses. target: OWN, FUTURE or PAST, for a score that uses a target.
    model: the current model at that stage, or the base model before the first."""

    score: Score
    target: str | None = None
    model: Literal["current", "base"] = "current"


@dataclass(frozen=True)
class Contender:
    """A selector as the audit runs it. by, vectors, target, history: as in `curate select`, in a workspace that has the
    stage's samples, these scores and the targets OWN, FUTURE and PAST. history: used from the second stage on.

    weighting: with which it is trained; None: the audit's. One that chooses within the step is the selector itself: its
    candidates are all samples of the stage, and `selector` is not used. weighting_target: OWN or FUTURE. replay: share
    of the budget that from the second stage on is drawn at random from what was chosen in earlier stages.
    """

    name: str
    selector: Selector
    scores: tuple[Scoring, ...] = ()
    by: str | None = None
    vectors: str | None = None
    target: str | None = None
    history: str | None = None
    weighting: Weighting | None = None
    weighting_target: str | None = None
    replay: float = 0.0

    @property
    def online(self) -> bool:
        """Whether it chooses within the training step."""
        return self.weighting is not None and self.weighting.chooses

    def recipe(self) -> dict[str, Any]:
        """What an audit's results depend on of it."""
        scores = [[s.score.name, s.score.version, s.score.settings(), s.target, s.model] for s in self.scores]
        inputs = {name: getattr(self, name) for name in ("by", "vectors", "target", "history")}
        more: dict[str, Any] = {"replay": self.replay} if self.replay else {}
        if self.weighting:
            more["weighting"] = [self.weighting.name, self.weighting.settings(), self.weighting_target]
        return {"selector": [self.selector.name, self.selector.settings()], "scores": scores, **inputs, **more}


@dataclass(frozen=True)
class Probe:
    """The short branch on the next stage, by which future adaptation is measured.

    The settings of `[probe]`.
    """

    steps: int = 20
    """Optimizer steps; 0: no branch."""
    every: int = 5
    """Steps between two evaluations on the next stage's val samples."""
    data: Literal["common", "own"] = "common"
    """Training data of the branch: common for the same random samples for all selectors, own for each one's choice."""
    limit: int = 0
    """Questions per evaluation; 0: all."""
    rows: Literal["disjoint", "same"] = "disjoint"
    """Whether the val samples of a later stage's target are divided between the future proxy, which selectors see, and
    this branch's evaluations, half to each (disjoint), or all are both (same)."""

    def __post_init__(self) -> None:
        if self.steps < 0 or self.every < 1 or self.limit < 0:
            raise CurateError(
                "a probe has steps and limit of 0 or more, and evaluates every so many steps, 1 or more; not "
                f"steps={self.steps}, every={self.every}, limit={self.limit}."
            )


@dataclass(frozen=True)
class Audit:
    """Everything that determines an audit, apart from the stored data.

    budget: one of {"frac": F}, {"top": N}, {"tokens": N}, for every stage. common: the selector of the probe's samples.
    elsewhere: out-of-domain targets. proxy: a target to use in place of FUTURE's samples. limit: questions per
    evaluation; 0: all. adapter: with LoRA, whether one adapter and one optimizer's state go through all stages
    (carried; '' means it), or each stage has new ones, on a base that the earlier ones are merged into (fresh). blur:
    share of a stage's samples that its neighbours have.
    """

    model: ModelChoice
    stages: tuple[Stage, ...]
    contenders: tuple[Contender, ...]
    weighting: Weighting
    common: Selector
    metric: Metric
    settings: TrainSettings = field(default_factory=TrainSettings)
    budget: Mapping[str, float] = field(default_factory=lambda: {"frac": 0.25})
    seeds: int = 3
    elsewhere: tuple[str, ...] = ()
    proxy: str | None = None
    limit: int = 0
    probe: Probe = Probe()
    measures: Measures = Measures()
    adapter: Literal["", "carried", "fresh"] = ""
    blur: float = 0.0

    @property
    def targets(self) -> list[str]:
        """All targets to evaluate on, those of the stages first."""
        return list(dict.fromkeys([*(stage.target for stage in self.stages), *self.elsewhere]))

    @property
    def between(self) -> str:
        """What becomes of an adapter between stages: carried or fresh; '' where all parameters are trained."""
        return (self.adapter or "carried") if self.settings.lora_r else ""

    @property
    def carries(self) -> bool:
        """Whether an adapter is carried from stage to stage."""
        return self.between == "carried"

    @property
    def divides(self) -> bool:
        """Whether the future proxy and the branch's evaluations have val samples of their own."""
        return self.probe.steps > 0 and self.probe.rows == "disjoint"

    def seed_of(self, seed: int, stage: int) -> int:
        """The seed of a stage's training. A new adapter is drawn anew at every stage: by one seed all stages' matrices
        A would be the same, and all updates in the few directions of one adapter."""
        return seed + MOST_SEEDS * (stage - 1) if self.between == "fresh" else seed

    def paths(self) -> list[tuple[Contender, int]]:
        """Every pair of a selector and a seed."""
        return [(contender, seed) for seed in range(self.seeds) for contender in self.contenders]

    def recipe(self, stamps: Mapping[str, str]) -> AuditRecipe:
        """All settings that results depend on, without those that only affect how results are summarised; stamps:
        fingerprints of the data."""
        measured = {key: value for key, value in asdict(self.measures).items() if key in _MEASURED}
        return AuditRecipe(
            model=model_recipe(self.model),
            stages=[asdict(stage) for stage in self.stages],
            selectors={contender.name: contender.recipe() for contender in self.contenders},
            weighting=[self.weighting.name, self.weighting.settings()],
            training=asdict(self.settings),
            budget=dict(self.budget),
            metric=[self.metric.name, self.metric.shaping(), self.limit],
            out_of_domain=list(self.elsewhere),
            proxy=self.proxy,
            probe={**asdict(self.probe), "common": self.common.name},
            measures=measured,
            data=dict(stamps),
            adapter=self.between,
            blur=self.blur,
        )


MOST_SEEDS = 1000  # each is a training per stage and selector
_MEASURED = ("clusters", "gradients", "projection", "running")  # the measures' settings that a cell depends on
