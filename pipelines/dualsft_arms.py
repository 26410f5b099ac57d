"""The arms of dualsft.py: what chooses the samples of each, and what the parameters; and the scores, selections and
masks that the arms need, made in a workspace with a seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dualsft_point import again  # pyright: ignore[reportMissingImports]
from presets import Preset  # pyright: ignore[reportMissingImports]

import curate
from curate.kinds.parameters import Mask
from curate.methods.masks.dualsft import Dualsft as DualsftMask
from curate.methods.masks.gradient_block import GradientBlock
from curate.methods.masks.magnitude_small import MagnitudeSmall
from curate.methods.masks.principal import Principal
from curate.methods.masks.random import Random as RandomMask
from curate.methods.masks.structured import Structured
from curate.methods.scores.embed_tokens import EmbedTokens
from curate.methods.selectors.fishersft import Fishersft
from curate.methods.selectors.random import Random
from curate.methods.selectors.spice import Spice
from curate.methods.selectors.top import Top
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.runs.config import TrainingSpec
from curate.store.mask_file import read_mask
from curate.store.workspace import Workspace
from curate.verbs.select import SelectionSpec

DATA, PARAMETERS = 0.10, 0.05  # the paper's budgets
ROUNDS = (1, 3)  # of choosing again


@dataclass(frozen=True)
class Arm:
    """manifest, mask: names, without the seed that ends them; None: all samples, all parameters."""

    name: str
    manifest: str | None = None
    mask: str | None = None
    lora: int = 0


ARMS = (
    Arm("sft"),
    Arm("lora", lora=16),
    Arm("data_random", "random"),
    Arm("data_less", "less_best"),
    Arm("data_fishersft", "fishersft_best"),
    Arm("data_spice", "spice_best"),
    Arm("data_dualsft", "dual_best"),
    Arm("data_dualsft_null", "dual_null"),
    Arm("data_dualsft_worst", "dual_worst"),
    Arm("param_random", None, "m_random"),
    Arm("param_nanoadam", None, "m_small"),
    Arm("param_smt", None, "m_blocks"),
    Arm("param_lift", None, "m_principal"),
    Arm("param_s2ft", None, "m_channels"),
    Arm("param_dualsft", None, "m_dual"),
    Arm("param_dualsft_worst", None, "m_worst"),
    Arm("less_then_s2ft", "less_best", "m_channels"),
    Arm("spice_then_s2ft", "spice_best", "m_channels"),
    Arm("less_then_nanoadam", "less_best", "m_small"),
    Arm("spice_then_nanoadam", "spice_best", "m_small"),
    Arm("both_random", "random", "m_random"),
    Arm("dualsft", "dual_best", "m_dual"),
    Arm("dualsft_null", "dual_null", "m_dual"),
    Arm("dualsft_worst", "dual_worst", "m_worst"),
    Arm("dual_data_random_mask", "dual_best", "m_random"),
    Arm("random_data_dual_mask", "random", "m_dual"),
    Arm("dual_data_worst_mask", "dual_best", "m_worst"),
    Arm("worst_data_dual_mask", "dual_worst", "m_dual"),
    *(Arm(f"dualsft_again{r}", f"again{r}_best", f"m_again{r}") for r in ROUNDS),
)
# How else DualSFT can score: at the base model; with no, or more, weight on what is to be kept; kept by other means.
VARIANTS = {
    "init": {"warmup": 0.0, "order": "first", "preserve": "none"},
    "lam0": {"preserve": "none"},
    "lam1": {"lam": 1.0},
    "l2": {"preserve": "l2"},
    "fisher": {"preserve": "fisher"},
}
ALL_ARMS = (*ARMS, *(Arm(f"dualsft_{name}", f"{name}_best", f"m_{name}") for name in VARIANTS))
# Those of `few`: DualSFT, one side of it, and chance.
FEW_NAMES = ("sft", "data_random", "data_dualsft", "param_random", "param_dualsft", "both_random", "dualsft",
             "dual_data_random_mask", "random_data_dual_mask")  # fmt: skip
FEW_ARMS = tuple(arm for arm in ARMS if arm.name in FEW_NAMES)


def needs(arms: Sequence[Arm], *names: str) -> bool:
    """Whether any of the arms takes one of these manifests or masks."""
    return any(name in (arm.manifest, arm.mask) for arm in arms for name in names)


def _seeded(name: str, seed: int) -> str:
    return f"{name}_{seed}"


def scores(
    ws: Workspace, preset: Preset, target: str, model: ModelChoice, seed: int, arms: Sequence[Arm]
) -> dict[str, str]:
    """Everything that the arms need to be scored for a seed, with a warm-up of its own: what -> the score's name."""
    dual = replace(preset.dual, warmup_seed=preset.dual.warmup_seed + seed)
    variants = {
        "dual": dual,
        **{name: replace(dual, **change) for name, change in VARIANTS.items() if needs(arms, f"{name}_best")},
    }
    names = {what: _seeded(what, seed) for what in variants}
    for what, method in variants.items():
        (scored,) = curate.score(ws, method, target=target, names={"dualsft": names[what]}, models=model)
        if what == "dual":
            print(f"   {scored.name}: {scored.rows:,} samples, {scored.nulls:,} without a score. {scored.note}")
    if not needs(arms, "less_best", "spice_best"):
        return names
    names["less"] = _seeded("less", seed)
    same = {"warmup": dual.warmup, "epochs": dual.epochs, "batch_size": dual.batch_size}
    less = replace(preset.less, **same, warmup_seed=dual.warmup_seed)
    vectors = _seeded("less_vectors", seed)
    curate.score(ws, less, target=target, names={"less": names["less"]}, vectors={"less": vectors}, models=model)
    raw = replace(less, variant="sgd")  # SPICE is about the gradients themselves
    curate.score(ws, raw, vectors={"less": _seeded("less_raw", seed)}, models=model)
    return names


def selections(ws: Workspace, names: dict[str, str], seed: int, model: ModelChoice, arms: Sequence[Arm]) -> None:
    rows = round(DATA * ws.n_rows())
    by = {f"{what}_best": names[what] for what in names} | {"dual_worst": f"-{names['dual']}"}
    for name, column in by.items():
        curate.select(ws, _seeded(name, seed), Top(), SelectionSpec(by=column, top=rows))
    if needs(arms, "fishersft_best"):
        curate.score(ws, EmbedTokens(), models=model)
        by_tokens = SelectionSpec(top=rows, vectors="embed_tokens")
        curate.select(ws, _seeded("fishersft_best", seed), Fishersft(of="tokens"), by_tokens)
    if needs(arms, "spice_best"):
        raw = SelectionSpec(top=rows, vectors=_seeded("less_raw", seed))
        curate.select(ws, _seeded("spice_best", seed), Spice(), raw)
    curate.select(ws, _seeded("random", seed), Random(), SelectionSpec(top=rows, seed=seed))
    null = SelectionSpec(by=names["dual"], top=rows, seed=seed, null=True)
    curate.select(ws, _seeded("dual_null", seed), Top(), null)


def masks(
    ws: Workspace, preset: Preset, model: ModelChoice, names: dict[str, str], seed: int, arms: Sequence[Arm]
) -> dict[str, Mask]:
    """The methods of the arms' masks by name, each stored under it."""
    training = preset.training
    warm_up = {"lr": training.lr, "batch_size": training.batch_size, "steps": min(100, preset.steps)}
    refresh = max(1, preset.steps // 4)  # within the run
    by_weights: dict[str, Mask] = {
        "m_small": MagnitudeSmall(interval=refresh),
        "m_blocks": GradientBlock(block=16 if preset.context == 0 else 64, edges="pad", **warm_up),
        "m_principal": Principal(interval=refresh, modules="dualsft"),
        "m_random": RandomMask(seed=seed),
        "m_channels": Structured(seed=seed),
    }
    by_score = {"m_dual": "dual", "m_worst": "dual", **{f"m_{name}": name for name in VARIANTS}}
    methods = {_seeded(name, seed): method for name, method in by_weights.items() if needs(arms, name)}
    for name, method in methods.items():
        if name not in ws.mask_names():
            curate.mask(ws, name, method, PARAMETERS, model=model)
    for name, what in by_score.items():
        if not needs(arms, name):
            continue
        method = methods[_seeded(name, seed)] = DualsftMask(end="smallest" if name == "m_worst" else "largest")
        if _seeded(name, seed) not in ws.mask_names():
            curate.mask(ws, _seeded(name, seed), method, PARAMETERS, score=names[what])
    for rounds in ROUNDS:
        if not needs(arms, f"m_again{rounds}"):
            continue
        manifest, mask = _seeded(f"again{rounds}_best", seed), _seeded(f"m_again{rounds}", seed)
        methods[mask] = DualsftMask()
        if mask not in ws.mask_names():
            again(ws, names["dual"], _seeded("m_dual", seed), rounds, DATA, PARAMETERS, manifest, mask)
    return methods


def training_of(
    ws: Workspace, preset: Preset, model: ModelChoice, arm: Arm, methods: dict[str, Mask], seed: int
) -> TrainingSpec:
    """What an arm trains with a seed. All start from the base model; SMT's from where its warm-up ended."""
    manifest, mask = (name and _seeded(name, seed) for name in (arm.manifest, arm.mask))
    settings = replace(preset.training, steps=preset.steps, lora_r=arm.lora)
    training = TrainingSpec(model, Uniform(), settings, manifest=manifest, seed=seed)
    if not mask:
        return training
    stored = read_mask(ws, mask)
    start_model = replace(model, name=stored.recipe.checkpoint or model.name)
    return replace(training, model=start_model, mask=stored, masking=methods[mask])
