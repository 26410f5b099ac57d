from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from curate.errors import CurateError
from curate.gradients.mean_gradient import mean_gradient
from curate.kinds.passes import Arrays, Columns, ForwardRequest, GradientCollector, GradientRequest, Pass
from curate.kinds.score import HeldOutShare, Score, Target, Warmup
from curate.kinds.signals import Logits
from curate.kinds.vectors import Groups

if TYPE_CHECKING:
    from torch import Tensor

    from curate.gradients.backward import CheckpointView
    from curate.gradients.collectors import Directions
    from curate.gradients.optimizer_state import Moments


@dataclass(frozen=True)
class Dualsft(Score):
    """Shapley value of a sample in a training step; the same gradients say which parameters to train (DualSFT).

    Formula, at the parameters theta_w at the end of a warm-up, with g_i the gradient of the mean loss of sample i's
    supervised tokens and G the sum of g_i over the N samples that are scored:

        v = gradient of L_val = L_task + lam L_pre          (L_task: mean loss of the target's examples)
        q = s v - s^2/2 c,   c = 0 | h * G | H G            (order=first, diagonal, full; * elementwise)
        score_i = <q, g_i>,    of a parameter j: q_j G_j    (the mask `dualsft`)
        h = curvature_scale (sqrt(v2 / (1 - beta2^t)) + eps),    v2 AdamW's second moments after t steps
        s = eta / N (step=mean), or eta (step=sum);   H the Hessian of L_val

    To that order it is the exact Shapley value of the game in which the value of a set of samples is the decrease of
    L_val after a step on their gradients; so the scores of all samples and those of all parameters have the same sum.
    L_pre preserves the model's abilities, on anchors (a held-out share of the pool; the warm-up's samples are held out
    too; neither is scored):

        cwsd    mean over anchors x of w(x) tau^2 mean over tokens of KL(p0 || p),  at temperature tau, p0 the model
                before the warm-up, and w the mean over tokens of 1 - H(p0)/log V (confidence=entropy_inv), of max p0
                (max_prob), or 1 (uniform); without tau^2 where squared_tau=false; divided by the sum of w instead
                of the number of anchors where normalize=confidence
        l2      |theta - theta_0|^2 / 2
        fisher  sum over j of F_j (theta_j - theta_0j)^2 / 2,   F the mean of g^2 over the anchors

    Columns: `first` s <v, g_i> and `second` s^2/2 <c, g_i>, float64; score = first - second. With a learning rate of
    1e-5, `second` is about 1e-10 times `first`: the ratio is reported when the score is computed, and curvature_scale
    changes it (h has the units of a gradient, not of a curvature).

    Cost: the warm-up, 6N FLOPs per token of its samples; then two passes over the pool, each 2N forward, 2N backward
    and 2N for each sum or product, which never materialise a sample's whole gradient (for two directions, where order
    is not first, one matrix of a few samples at a time, at most 256 MiB: faster than two products with the factors);
    anchors and target once (order=full: three times as much). Bottleneck: the device's matrix products. Memory: 24
    bytes per parameter in addition to the model; a second model for cwsd. A second target costs its own gradients and
    the second pass.

    warmup=0 scores at the model itself (the paper's Init): L_pre and its gradient are 0 there, and there are no second
    moments, so it takes preserve=none and order=first.

    The values are of a short step. When a score is computed here, the target's loss is also taken at ten distances
    along AdamW's first step, forward passes over the target alone, and it is said up to which learning rate times steps
    the decrease is at least half of the predicted one.

    Departures: the paper states lam, tau and the warm-up's share (Section 6.1, F.1.3, Table 5), but not in a form that
    could be read here. lam=0.2 and tau=2 are those of the published scripts; on the sample corpus lam=1, the default of
    their code, costs samples of the target (docs/results/dualsft.md). entropy_inv is the one of the code's maps that
    fits the paper's description; its scripts use max_prob, a warm-up of 0.1 and anchors of 0.02. The published code
    keeps raw second moments and steps by eta on summed gradients (step=sum). tau^2 is taken from that code; the bias
    correction is ours. Anchors are a share of the pool (in the paper 2,048 samples). With --checkpoints it is unknown
    what they were trained on, so only the anchors are held out.

    Reference: DualSFT, arXiv:2605.06166, Equations 3 to 7 and 12, Lemma 1, Appendix C.

    >>> import numpy as np
    >>> dot = {"gradient": {"dot": np.array([[2.0, 1.0], [-1.0, 4.0]])}}  # with v, and with c / N
    >>> made = Dualsft(eta=0.5)._terms(dot["gradient"]["dot"], n=10)
    >>> [x.round(4).tolist() for x in made]  # 0.05 <v, g>; 0.05^2 / 2 * 10 <c / N, g>
    [[0.1, -0.05], [0.0125, 0.05]]
    """

    scope: ClassVar = "pool"
    uses_target: ClassVar = True
    models: ClassVar = ("base", "origin")
    same_models: ClassVar = {"origin": "base"}
    checkpoints: ClassVar = "last"
    scores_warmup: ClassVar = False
    predicts_a_step: ClassVar = True
    columns: ClassVar = {"first": "float64", "second": "float64"}

    order: Literal["first", "diagonal", "full"] = "diagonal"
    """Order of the expansion of L_val: no curvature; AdamW's scale as the curvature; the Hessian (small models)."""
    eta: float = 2e-5
    """Learning rate of the step that is scored."""
    step: Literal["mean", "sum"] = "mean"
    """The step goes along the mean of the gradients (eta / N), or along their sum."""
    curvature_scale: float = 1.0
    """Factor that h is multiplied by."""
    preserve: Literal["cwsd", "l2", "fisher", "none"] = "cwsd"
    """How abilities are preserved: distillation on anchors; distance to the initial model, plain or Fisher-weighted."""
    lam: float = 0.2
    """Weight of L_pre relative to the target's loss."""
    tau: float = 2.0
    """Temperature of cwsd."""
    squared_tau: bool = True
    """Whether cwsd is multiplied by tau^2, as distillation usually is."""
    confidence: Literal["entropy_inv", "max_prob", "uniform"] = "entropy_inv"
    """How an anchor is weighted, by the predictions of the model before the warm-up."""
    normalize: Literal["anchors", "confidence"] = "anchors"
    """Whether cwsd is divided by the number of anchors, or by the sum of their weights."""
    anchors_share: float = 0.05
    """Share of the pool that is held out as anchors."""
    anchors_seed: int = 0
    """Seed of the draw of anchors."""
    beta2: float = 0.999
    """AdamW's beta2; use the training's own value."""
    eps: float = 1e-8
    """AdamW's eps; use the training's own value."""
    warmup: float = 0.05
    """Share of the pool that the warm-up trains on; 0: no warm-up, the gradients are the model's own."""
    epochs: float = 1.0
    """Epochs of the warm-up."""
    lr: float = 2e-5
    """Learning rate of the warm-up."""
    batch_size: int = 64
    """Batch size of the warm-up."""
    micro_batch_size: int = 16
    """Rows per forward pass in the warm-up."""
    lora_r: int = 0
    """LoRA rank in the warm-up; 0: all parameters are trained, and the gradients are those of all."""
    warmup_seed: int = 42
    """Seed of the draw and the order of the warm-up's samples."""
    by: Literal["ghost", "difference"] = "ghost"
    """How a sample's gradient is multiplied: by the factors of each layer's gradient, in a forward and a backward pass;
    or by differences of its losses, in two forward passes for `first` and one for `second`, and only in float32."""

    def __post_init__(self) -> None:
        if not 0 < self.anchors_share < 1:
            raise CurateError(
                f"anchors_share={self.anchors_share:g} of dualsft is a share of the pool, between 0 and 1."
            )
        if not 0 <= self.warmup < 1:
            raise CurateError(
                f"warmup={self.warmup:g} of dualsft is a share of the pool, between 0 and 1; 0: no warm-up."
            )
        if not self.warmup:
            self._refuse_what_a_beginning_lacks()
        for name in ("eta", "tau"):
            if not getattr(self, name) > 0:
                raise CurateError(f"{name}={getattr(self, name):g} of dualsft is a number above 0.")
        for name in ("lam", "curvature_scale"):
            if not getattr(self, name) >= 0:
                raise CurateError(f"{name}={getattr(self, name):g} of dualsft is a number of 0 or more.")
        if self.lora_r and self.preserve in ("l2", "fisher"):
            raise CurateError(
                f"preserve={self.preserve} compares all parameters with the model before, and with lora_r="
                f"{self.lora_r} only LoRA's are trained; take preserve=cwsd."
            )

    def _refuse_what_a_beginning_lacks(self) -> None:
        """Raises CurateError for settings that only mean something after a training."""
        if self.order == "diagonal":
            raise CurateError(
                "order=diagonal of dualsft takes AdamW's second moments, and with warmup=0 nothing is trained; take "
                "order=first (or full)."
            )
        if self._preserves != "none":
            raise CurateError(
                f"preserve={self.preserve} of dualsft is about what a training changes: with warmup=0 it and its "
                "gradient are 0; take preserve=none."
            )

    def warm_up(self) -> Warmup | None:
        if not self.warmup:
            return None
        settings = {name: getattr(self, name) for name in ("epochs", "lr", "batch_size", "micro_batch_size", "lora_r")}
        adam = {name: getattr(self, name) for name in ("beta2", "eps")}
        return Warmup(self.warmup, self.warmup_seed, {**settings, **adam, "schedule": "cosine", "warmup": 0.03})

    def used_models(self) -> tuple[str, ...]:
        return self.models if self._preserves != "none" else ("base",)

    @property
    def _preserves(self) -> str:
        return self.preserve if self.lam else "none"

    def anchors(self) -> HeldOutShare | None:
        return HeldOutShare(self.anchors_share, self.anchors_seed) if self._preserves in ("cwsd", "fisher") else None

    def passes(self, target: Target | None) -> tuple[Pass, ...]:
        assert target is not None
        curved = self._along_pool if self.order == "full" else None
        passes = [mean_gradient(None, named="pool.")]
        if self._preserves == "cwsd":
            shaped_by = ("preserve", "order", "tau", "squared_tau", "confidence")
            options: dict[str, Any] = {"loss": self.distillation, "beside": "origin", "curved": curved}
            weight = {"weight": ForwardRequest(self._token_confidence, model="origin")}
            passes.append(mean_gradient(None, shaped_by, over="anchors", named="pre.", more=weight, **options))
        if self._preserves == "fisher":
            more = {"squares": GradientRequest(self._squares), "moved": GradientRequest(self._moved, beside="origin")}
            passes.append(mean_gradient(None, ("preserve",), over="anchors", named="pre.", more=more))
        moved = {"moved": GradientRequest(self._moved, beside="origin")} if self._preserves == "l2" else {}
        groups, shaped_by = Groups.of(target.subtasks, False), ("target", "order", "preserve")
        passes.append(mean_gradient(groups, shaped_by, named="task.", curved=curved, more=moved))
        way: dict[str, Any] = {"along": self._along_dual, "by": "difference"}
        way = {"watch": self._both} if self.by == "ghost" else way
        request = GradientRequest(moments=self.order == "diagonal", **way)
        return *passes, Pass("gradients", self._scored, open=self._opened, requests={"gradient": request})

    # --- what is preserved -------------------------------------------------------------------------------

    def distillation(self, student: Tensor, teacher: Tensor | None, sample: Tensor, n: int) -> Tensor:
        """w(x) tau^2 times the mean over each sample's tokens of KL(teacher || student), at temperature tau: [n].

        student, teacher: logits [S, V]. sample: which of the n samples each token belongs to, [S]."""
        assert teacher is not None
        log_p, log_p0 = ((logits / self.tau).log_softmax(-1) for logits in (student, teacher.to(student)))
        kl = (log_p0.exp() * (log_p0 - log_p)).sum(-1)
        tokens = sample.bincount(minlength=n).clamp(min=1)
        weight = kl.new_zeros(n).index_add(0, sample, self._confidence_of(log_p0).to(kl)) / tokens
        mean = kl.new_zeros(n).index_add(0, sample, kl) / tokens
        return weight * mean * (self.tau**2 if self.squared_tau else 1.0)

    def _confidence_of(self, log_p: Tensor) -> Tensor:
        """Confidence, [S], from each token's log-probabilities at temperature tau, [S, V]."""
        if self.confidence == "uniform":
            return log_p.new_ones(len(log_p))
        if self.confidence == "max_prob":
            return log_p.amax(-1).exp()
        return 1 + (log_p.exp() * log_p).sum(-1) / float(np.log(log_p.shape[-1]))

    def _token_confidence(self, at: Logits) -> Any:
        return self._confidence_of((at.log_p / self.tau).log_softmax(-1))

    def _squares(self, at: CheckpointView, state: Any, places: np.ndarray) -> GradientCollector:
        from curate.gradients.collectors import Squares

        return Squares(len(places), "squares/", "samples")

    def _moved(self, at: CheckpointView, state: Any, places: np.ndarray) -> GradientCollector:
        from curate.gradients.collectors import Moved

        return Moved(at, "origin", "moved/", "samples")

    # --- the directions ----------------------------------------------------------------------------------

    def _along_pool(self, at: CheckpointView, state: Directions) -> Mapping[str, Tensor]:
        """G / N, the vector that the Hessians are applied to."""
        return state.on(at, "pool.0/")

    def _opened(self, state: Arrays) -> Directions:
        """dual/PARAMETER: [1 or 2, *shape], of which the first is v, and the second G / N, or H G / N."""
        from curate.gradients.collectors import Directions

        names = [key.removeprefix("pool.0/") for key, value in state.items() if key.startswith("pool.0/")]
        directions = {"pool.0/samples": state.get("pool.0/samples", np.zeros(1))}
        for name in names:
            if name != "samples":
                dual = self.dual(state, name)
                directions[f"dual/{name}"] = np.stack(dual if self.order != "first" else dual[:1]).astype(np.float32)
        return Directions(directions)

    def dual(self, state: Arrays, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Of one parameter, float64: v; and G / N, or H G / N (order=full), from the states of the counting passes."""
        v, mean = (state[f"{key}.0/{name}"][0].astype(np.float64) for key in ("task", "pool"))
        bent = state[f"task.hessian0/{name}"][0].astype(np.float64) if self.order == "full" else mean
        scale, full = self.lam, self.order == "full"
        if self._preserves == "cwsd":
            if self.normalize == "confidence":
                scale /= float(state["pre.weight/mean"][0])
            v = v + scale * state[f"pre.0/{name}"][0]
            bent = bent + scale * state[f"pre.hessian0/{name}"][0] if full else bent
        elif self._preserves == "l2":
            v = v + scale * state[f"task.moved/{name}"][0]
            bent = bent + scale * mean if full else bent
        elif self._preserves == "fisher":
            fisher = scale * state[f"pre.squares/{name}"][0].astype(np.float64)
            v = v + fisher * state[f"pre.moved/{name}"][0]
            bent = bent + fisher * mean if full else bent
        return v, bent

    def curvature(self, square: Any, step: int) -> Any:
        """h, from AdamW's second moments after that many steps."""
        return self.curvature_scale * ((square / (1 - self.beta2**step)) ** 0.5 + self.eps)

    # --- the score ---------------------------------------------------------------------------------------

    def _both(self, at: CheckpointView, state: Directions, places: np.ndarray) -> GradientCollector:
        from curate.gradients.collectors import Dots

        return Dots(self._along_dual(at, state))

    def _along_dual(self, at: CheckpointView, state: Directions) -> Mapping[str, Tensor]:
        return state.on(at, "dual/", partial(self._bent, at) if self.order == "diagonal" else lambda _, q: q)

    def _bent(self, at: CheckpointView, name: str, q: Tensor) -> Tensor:
        """v and h * G / N."""
        assert at.moments is not None
        q[1] *= self.curvature(at.moments.square[name], at.moments.step)
        return q

    def _scored(self, requests: Mapping[str, Columns], state: Directions) -> Columns:
        first, second = self._terms(requests["gradient"]["dot"], state.count("pool.0/samples"))
        return {"score": first - second, "first": first, "second": second}

    def _terms(self, dot: np.ndarray, n: float) -> tuple[np.ndarray, np.ndarray]:
        """s <v, g_i> and s^2/2 <c, g_i>, of products with v and with c / N, float64 [B, 1 or 2]."""
        s = self._s(n)
        second = s**2 / 2 * n * dot[:, 1] if dot.shape[1] > 1 else np.zeros(len(dot))
        return s * dot[:, 0], second

    def _s(self, n: float) -> float:
        return self.eta / max(n, 1.0) if self.step == "mean" else self.eta

    def of_parameters(self, state: Arrays, moments: Moments | None) -> Callable[[str], np.ndarray]:
        def score(name: str) -> np.ndarray:
            square, step = (moments.square[name].cpu().numpy(), moments.step) if moments else (np.zeros(1), 1)
            return np.subtract(*self.of_parameter(state, name, square, step))

        return score

    def of_parameter(self, state: Arrays, name: str, square: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """s v_j G_j and s^2/2 c_j G_j of each element of a parameter, float64 [*shape]: their difference is its score.

        square, step: AdamW's second moments, and after how many steps they were taken; used by order=diagonal alone."""
        first, second = self.direction(state, name, square, step)
        total = float(state["pool.0/samples"][0]) * state[f"pool.0/{name}"][0].astype(np.float64)
        return first * total, second * total

    def direction(self, state: Arrays, name: str, square: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """s v and s^2/2 c of a parameter, float64 [*shape]: q is their difference."""
        v, bent = self.dual(state, name)
        n = float(state["pool.0/samples"][0])
        s = self._s(n)
        if self.order == "first":
            return s * v, np.zeros_like(v)
        curved = bent * self.curvature(square.astype(np.float64), step) if self.order == "diagonal" else bent
        return s * v, s**2 / 2 * n * curved

    def note(self, columns: Mapping[str, np.ndarray], target: Target | None = None) -> str:
        first, second = (columns[c][np.isfinite(columns[c])] for c in ("first", "second"))
        if self.order == "first" or not len(first) or not (size := float(np.sqrt(np.mean(first**2)))):
            return ""
        ratio = float(np.sqrt(np.mean(second**2))) / size
        remark = f"the second-order term is {ratio:.1e} of the first"
        consequence = "; so the order of the samples is that of order=first" if ratio < 1e-6 else ""
        return remark + consequence
