from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.gradients.mean_gradient import mean_gradient, opened
from curate.kinds.passes import Arrays, Columns, Fisher, GradientCollector, GradientRequest, Pass
from curate.kinds.score import Score, Target
from curate.kinds.vectors import Groups
from curate.numerics.kronecker import damped_inverse, eigenbasis

if TYPE_CHECKING:
    from torch import Tensor

    from curate.gradients.backward import CheckpointView
    from curate.gradients.collectors import Directions

Before = Mapping[str, np.ndarray]
_LAYERS = ("fisher", "fisher_seed", "factors_share", "modules", "layer_groups")  # what shapes the factors


@dataclass(frozen=True)
class Influence(Score):
    """Influence of a sample on the target's loss by influence functions, with EK-FAC's curvature by default.

    Formula, with g the gradient of the mean loss of a sample's supervised tokens with respect to the linear layers'
    matrices (all of --model, or those trained in the last of --checkpoints), and v over the target's examples:

        score_i = g_i . q,    q = (F + lambda)^-1 mean over v of g_v

    or, with aggregate=subtask_max, the maximum over sub-tasks of the product with the sub-task's own q. If a model is
    at its optimum, it is the decrease of the target's loss when the sample's weight in the training grows. F, block
    diagonal by layers, is the Gauss-Newton matrix of the pool's mean loss, which is its Fisher matrix, approximated by

        curvature=ekfac     Q_e, Q_x the eigenvectors of the second moments of the errors and of the inputs of a layer,
                            and the mean of (Q_e^T g Q_x)^2, elementwise, as the eigenvalues
        curvature=kfac      the same with the products of both sides' eigenvalues
        curvature=diagonal  the mean of g^2, elementwise
        curvature=identity  1, with no damping: graddot of the linear layers
        curvature=cg        the Gauss-Newton matrix itself, without blocks: `iterations` steps of conjugate gradient,
                            preconditioned by EK-FAC

    and lambda is `damping` times the mean eigenvalue of each layer. Gradients of F are those of labels drawn from the
    model's predictions (fisher=true), or of the sample's own (empirical). The target's gradient is preconditioned once,
    so that its size hardly matters: every further target costs its own gradients and one pass for the products. The
    factors do not depend on it, and are kept in prepared/.

    Cost: twice 6N FLOPs per token of `factors_share` of the pool, and for a layer of m by n about 4 (m^2 + n^2) + 2 m n
    per token for factors and eigenvalues (kfac: once 6N, and half of these; diagonal: once; identity: nothing); then
    graddot's. cg: besides, about 12N for each token of the same samples and iteration. Bottleneck: the device's matrix
    products; the eigenvectors, for a layer of thousands of rows, take seconds each on a processor. Memory: (m^2 + n^2 +
    m n) numbers of every layer at once, divided by `layer_groups`, each of which takes passes of its own.

    Departures: embeddings, the output head, norms and biases are left out, as they are by Grosse et al. (who take the
    multi-layer perceptrons alone: modules=mlp). A sample's tokens are taken as independent in the factors, as there,
    and not in the eigenvalues. The loss is the mean over a sample's tokens, not their sum.

    Reference: Grosse et al., "Studying Large Language Model Generalization with Influence Functions",
    arXiv:2308.03296; George et al., "Fast Approximate Natural Gradient Descent in a
    Kronecker-factored Eigenbasis" (EK-FAC), NeurIPS 2018, arXiv:1806.03884; Martens and Grosse (K-FAC), ICML 2015,
    arXiv:1503.05671. Conjugate gradient: Martens, "Deep learning via Hessian-free optimization", ICML 2010.

    >>> import numpy as np
    >>> Influence(curvature="diagonal", damping=1.0).preconditioned(
    ...     np.array([[2.0, 4.0]]), {"eigen/w": np.array([[1.0, 3.0]])}, "w").tolist()  # 2 / (1 + 2), 4 / (3 + 2)
    [[0.6666666666666666, 0.8]]
    """

    scope: ClassVar = "pool"
    uses_target: ClassVar = True
    models: ClassVar = ("base",)
    checkpoints: ClassVar = "last"

    curvature: Literal["ekfac", "kfac", "diagonal", "identity", "cg"] = "ekfac"
    """The approximation of F."""
    damping: float = 0.1
    """lambda, as a share of the mean eigenvalue of each layer."""
    fisher: Literal["true", "empirical"] = "true"
    """Whose labels' gradients F is made of: drawn from the model's predictions, or the sample's own."""
    fisher_seed: int = 0
    """Seed of those labels, and of the draw of the samples that F is made of."""
    factors_share: float = 1.0
    """Share of the pool that F is made of."""
    modules: str = ""
    """Regular expression, searched in the parameters' names: only matching linear layers are used; empty: all."""
    layer_groups: int = 1
    """Into how many groups the layers are dealt; each takes passes of its own for its factors, and less memory."""
    iterations: int = 10
    """Steps of conjugate gradient (curvature=cg)."""
    aggregate: Literal["mean", "subtask_max"] = "mean"
    """Over all of the target's examples, or the maximum over sub-tasks of the score for the sub-task."""
    keep_subtasks: bool = False
    """Keep every sub-task's score in the column `subtasks`; then each is a direction of its own."""

    def __post_init__(self) -> None:
        if not self.damping > 0:
            raise CurateError(f"damping={self.damping:g} of influence is a share of the mean eigenvalue, above 0.")
        if not 0 < self.factors_share <= 1:
            raise CurateError(f"factors_share={self.factors_share:g} of influence is a share of the pool: up to 1.")
        for name in ("layer_groups", "iterations"):
            if getattr(self, name) < 1:
                raise CurateError(f"{name}={getattr(self, name)} of influence is a number of 1 or more.")
        if self.curvature == "cg" and (self.keep_subtasks or self.aggregate == "subtask_max"):
            raise CurateError(
                "curvature=cg of influence solves for one direction, and each of the target's sub-tasks is one; take "
                "curvature=ekfac, or aggregate=mean without keep_subtasks."
            )
        try:
            re.compile(self.modules)
        except re.error as error:
            raise CurateError(f"modules={self.modules} of influence is no regular expression: {error}.") from None

    def keeps_subtasks(self) -> bool:
        return self.keep_subtasks

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        assert target is not None
        groups = Groups.of(target.subtasks, self.aggregate == "subtask_max" or self.keep_subtasks)
        score = partial(groups.aggregated, aggregate=self.aggregate, keep=self.keep_subtasks)
        mean = mean_gradient(groups, ("target", "aggregate", "keep_subtasks", "curvature", "damping", "modules"))
        mean = replace(mean, then=self._solved, reads="nothing")
        last = Pass(
            "gradients",
            partial(self._scored, score),
            open=opened,
            requests={"gradient": GradientRequest(self._products)},
            reads="x/",
        )
        return *self._curvature(), mean, *self._iterations(), last

    # --- the curvature -----------------------------------------------------------------------------------

    def _curvature(self) -> list[Pass]:
        """The passes for eigenvectors and eigenvalues, group by group: they do not depend on the target."""
        passes: list[Pass] = []
        for group in range(self.layer_groups if self.curvature != "identity" else 0):
            if self.curvature != "diagonal":
                watch = partial(self._factors, group)
                passes.append(self._over_pool(f"factors {group + 1}", watch, self._bases, reads="nothing"))
            if self.curvature != "kfac":
                watch = partial(self._eigenvalues, group)
                mean = partial(_mean, f"eigen{group}/", "eigen/")
                passes.append(self._over_pool(f"eigenvalues {group + 1}", watch, mean, reads=f"basis{group}/"))
        return passes

    def _over_pool(self, name: str, watch: Any, reduce: Any, reads: str) -> Pass:
        request = GradientRequest(watch, fisher=Fisher(self.fisher, self.fisher_seed))
        return Pass(
            name,
            _sums,
            reduce,
            open=opened,
            shaped_by=(*_LAYERS, "curvature"),
            requests={"gradient": request},
            reads=reads,
            share=self.factors_share,
            seed=self.fisher_seed,
        )

    def _names(self, at: CheckpointView) -> list[str]:
        """The matrices that are used, in order. Raises CurateError if there are none."""
        found = [name for name in at.linear if re.search(self.modules, name)]
        if not found:
            some = ", ".join(list(at.linear)[:3]) or "none"
            raise CurateError(
                f"modules={self.modules} of influence matches no linear layer that is trained ({some}, …); "
                "take an expression that does, or leave it out."
            )
        return found

    def _factors(self, group: int, at: CheckpointView, state: Any, places: np.ndarray) -> GradientCollector:
        from curate.gradients.curvature import Factors

        return Factors(self._names(at)[group :: self.layer_groups], len(places), f"basis{group}/")

    def _bases(self, partials: Iterable[Arrays]) -> Arrays:
        """Of each matrix the eigenvectors of both factors, as basisGROUP/rows/NAME and …/columns/NAME; and for kfac the
        eigenvalues, as eigen/NAME."""
        sums, state = _added(partials), Arrays()
        if not sums:
            return state
        group = next(iter(sums)).partition("/")[0]
        samples = float(sums.pop(f"{group}/samples")[0])
        for name in [key.removeprefix(f"{group}/rows/") for key in sums if key.startswith(f"{group}/rows/")]:
            found = {}
            for side, count in (("rows", samples), ("columns", float(sums[f"{group}/tokens/{name}"][0]))):
                found[side], vectors = eigenbasis(sums.pop(f"{group}/{side}/{name}") / max(count, 1.0))
                state[f"{group}/{side}/{name}"] = vectors.astype(np.float32)
            if self.curvature == "kfac":
                state[f"eigen/{name}"] = np.outer(found["rows"], found["columns"])
        return state

    def _eigenvalues(self, group: int, at: CheckpointView, state: Directions, places: np.ndarray) -> GradientCollector:
        from curate.gradients.curvature import Rotated

        names = self._names(at)[group :: self.layer_groups]
        bases = None if self.curvature == "diagonal" else partial(_on_device, at, state, group)
        return Rotated(names, bases, len(places), f"eigen{group}/")

    # --- the direction -----------------------------------------------------------------------------------

    def preconditioned(self, v: np.ndarray, before: Before, name: str) -> np.ndarray:
        """(F + lambda)^-1 v of one matrix, or of several of them, [..., m, n], float64; from the earlier states."""
        if self.curvature == "identity":
            return np.asarray(v, np.float64)
        return damped_inverse(v, before[f"eigen/{name}"], self.damping, self._bases_of(before, name))

    def _bases_of(self, before: Before, name: str) -> tuple[np.ndarray, np.ndarray] | None:
        if self.curvature == "diagonal":
            return None
        group = next(g for g in range(self.layer_groups) if f"basis{g}/rows/{name}" in before)
        rows, columns = (before[f"basis{group}/{side}/{name}"] for side in ("rows", "columns"))
        return rows, columns

    def _solved(self, state: Arrays, before: Before) -> Arrays:
        """x/NAME, the direction; for cg its first approximation 0, and what conjugate gradient goes on with."""
        key = min(name.partition("/")[0] for name in state) + "/"
        names = [name.removeprefix(key) for name in state if name != f"{key}samples"]
        plain = self.curvature == "identity"
        names = [n for n in names if (re.search(self.modules, n) if plain else f"eigen/{n}" in before)]
        solved: Arrays = {"x/samples": state[f"{key}samples"]}
        for name in names:
            v = state[f"{key}{name}"]
            q = self.preconditioned(v, before, name)
            solved[f"x/{name}"] = (np.zeros_like(q) if self.curvature == "cg" else q).astype(np.float32)
            if self.curvature == "cg":
                solved |= {f"cg.left/{name}": np.asarray(v, np.float64), f"cg.p/{name}": q}
        if self.curvature == "cg":
            left = {name: solved[f"cg.left/{name}"] for name in names}
            solved["cg.length"] = np.sqrt([_dot(left, left)])
        return solved

    def _iterations(self) -> list[Pass]:
        if self.curvature != "cg":
            return []
        request = GradientRequest(curved=_along, curvature="gauss_newton")
        return [
            Pass(
                f"conjugate gradient {step + 1}",
                _sums,
                partial(_mean, "", "product/"),
                open=opened,
                shaped_by=("damping",),
                requests={"gradient": request},
                reads="cg.p/",
                then=self._stepped,
                share=self.factors_share,
                seed=self.fisher_seed,
            )
            for step in range(self.iterations)
        ]

    def _stepped(self, state: Arrays, before: Before) -> Arrays:
        """One step of conjugate gradient for (F + lambda) x = v, from F p."""
        names = [name.removeprefix("cg.p/") for name in before if name.startswith("cg.p/")]
        x, left, p = ({name: before[f"{key}/{name}"] for name in names} for key in ("x", "cg.left", "cg.p"))
        levels = {name: self.damping * float(before[f"eigen/{name}"].mean()) for name in names}
        moved = {name: state[f"product/{name}"] + levels[name] * p[name] for name in names}
        ahead = {name: self.preconditioned(left[name], before, name) for name in names}
        rho, bent = _dot(left, ahead), _dot(p, moved)
        length = rho / bent if bent else 0.0
        new = {name: left[name] - length * moved[name] for name in names}
        turned = {name: self.preconditioned(new[name], before, name) for name in names}
        back = _dot(new, turned) / rho if rho else 0.0
        stepped: Arrays = {"cg.residual": np.sqrt([_dot(new, new)])}
        for name in names:
            stepped[f"x/{name}"] = (x[name] + length * p[name]).astype(np.float32)
            stepped[f"cg.left/{name}"], stepped[f"cg.p/{name}"] = new[name], turned[name] + back * p[name]
        return stepped

    def state_note(self, before: Before) -> str:
        if "cg.residual" not in before:
            return ""
        left = float(before["cg.residual"][0]) / max(float(before["cg.length"][0]), 1e-300)
        steps = (
            f"{self.iterations} steps of conjugate gradient"
            if self.iterations > 1
            else "one step of conjugate gradient"
        )
        return f"{steps} leave a residual of {left:.2g} of the target's gradient"

    # --- the score ---------------------------------------------------------------------------------------

    def _products(self, at: CheckpointView, state: Directions, places: np.ndarray) -> GradientCollector:
        from curate.gradients.collectors import Dots
        from curate.gradients.curvature import Only

        directions = state.on(at, "x/")
        if not directions and len(places):
            raise CurateError(
                f"factors_share={self.factors_share:g} of influence drew no sample that has a gradient, so there is no "
                "curvature; take a larger share."
            )
        return Only(list(directions), Dots(directions))

    def _scored(self, score: Any, requests: Mapping[str, Columns], state: Directions) -> Columns:
        return score(requests["gradient"]["dot"], state.shares("samples"))


def _sums(requests: Mapping[str, Columns], _: Any) -> Columns:
    return requests["gradient"]["sums"]


def _added(partials: Iterable[Arrays]) -> Arrays:
    sums = Arrays()
    for arrays in partials:
        for name, value in arrays.items():
            sums[name] = sums.get(name, 0.0) + value.astype(np.float64)
    return sums


def _mean(key: str, named: str, partials: Iterable[Arrays]) -> Arrays:
    """Sums by their names after the key, divided by the number of samples, as named + NAME, float64."""
    sums = _added(partials)
    if not sums:
        return {}
    key = key or next(iter(sums)).partition("/")[0] + "/"
    samples = float(sums.pop(f"{key}samples")[0])
    return {named + name.removeprefix(key): value / max(samples, 1.0) for name, value in sums.items()}


def _along(at: CheckpointView, state: Directions) -> Mapping[str, Tensor]:
    return state.on(at, "cg.p/")


def _on_device(at: CheckpointView, state: Directions, group: int, name: str) -> tuple[Tensor, Tensor]:
    rows, columns = (state.one(at, f"basis{group}/{side}/{name}") for side in ("rows", "columns"))
    return rows, columns


def _dot(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    return float(sum(float(np.vdot(value, b[name])) for name, value in a.items()))
