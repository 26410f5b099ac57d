from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

from curate.errors import CurateError, require
from curate.kinds.mixer import Domains, Mixed, Mixer, Proxies
from curate.numerics.rank_agreement import spearman

Predict: TypeAlias = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Regmix(Mixer):
    """The mixture for which a regression over many small trainings predicts the lowest loss (RegMix).

    Formula, with p the domains' share of the pool:

        trials       x ~ Dirichlet(s p'),  p' = p^prior_power normalised,  s from 15 values log-spaced in [0.1, 5];
                     refused where some x_d > min(15 p_d, 1); x_d < 2e-4 becomes 0
        losses       y = mean over the targets of the loss of a proxy trained on x
        regression   y ~ f(x): LightGBM, or a linear model
        weights      of `simulations` draws x ~ Dirichlet(p), the mean of the `best` with the lowest f(x)

    f is chosen by `folds`-fold cross-validation: the number of LightGBM's rounds, and with regressor=auto the kind that
    ranks the folds' trials better (Spearman, reported as cross_validated_lightgbm and cross_validated_linear).

    Cost: `trials` trainings of the proxy model, 6N FLOPs per token, and as many evaluations; the regression takes
    seconds. Bottleneck: those trainings, which run in parallel under any executor.

    Departures: the authors' notebook stops LightGBM early on the test set; here on the held-out fold. LightGBM's other
    settings are its defaults; it needs about 60 trials to find a first split, below which auto takes the linear model.

    Reference: Liu et al., "RegMix: Data Mixture as Regression for Language Model Pre-training" (2024);
    sail-sg/regmix. 512 trials, 100,000 simulations, the best 128, learning rate 0.01, 1,000 rounds, stopped after 3
    are theirs.

    >>> domains = Domains(["a", "b"], np.array([3.0, 1.0]))
    >>> found = Regmix(trials=5).draw(domains)
    >>> found.shape, found.sum(1).round(6).tolist()
    ((5, 2), [1.0, 1.0, 1.0, 1.0, 1.0])
    """

    trains: ClassVar = True
    evaluates: ClassVar = True

    trials: int = 512
    """How many mixtures are tried."""
    regressor: Literal["auto", "lightgbm", "linear"] = "auto"
    """What predicts the loss; auto takes the one that ranks better in cross-validation."""
    simulations: int = 100_000
    """How many mixtures are predicted."""
    best: int = 128
    """How many of the best of these are averaged."""
    folds: int = 5
    """Folds of the cross-validation."""
    prior_power: float = 0.5
    """Exponent of the pool's shares in the prior of the trials: 1 keeps the shares, 0 makes all domains equal."""
    seed: int = 0
    """Seed of all draws."""

    def __post_init__(self) -> None:
        require(f"regmix.trials={self.trials}", 2 <= self.trials <= 100_000, "from 2 to 100,000")
        require(f"regmix.simulations={self.simulations}", self.simulations <= 10_000_000, "at most 10,000,000")
        require(f"regmix.folds={self.folds}", 2 <= self.folds <= self.trials, "2 or more, and no more than trials")
        require(f"regmix.best={self.best}", 1 <= self.best <= self.simulations, "1 or more, and at most simulations")
        require(f"regmix.prior_power={self.prior_power}", 0 <= self.prior_power <= 1, "between 0 and 1")

    def mix(self, domains: Domains, proxies: Proxies | None = None) -> Mixed:
        assert proxies is not None
        mixtures = self.draw(domains)
        losses = proxies.losses(mixtures).mean(1)
        finite = np.isfinite(losses)
        if finite.sum() < self.folds:
            raise CurateError(f"only {finite.sum()} of {self.trials} proxies have a loss; take a smaller train.lr.")
        predict, info = self.fit(mixtures[finite], losses[finite])
        rng = np.random.default_rng([self.seed % 2**63, 1])
        simulated = rng.dirichlet(domains.share, self.simulations)
        lowest = np.argsort(predict(simulated), kind="stable")[: self.best]
        weights = simulated[lowest].mean(0)
        info |= {"best_trial": float(losses[finite].min()), "median_trial": float(np.median(losses[finite]))}
        return Mixed(weights / weights.sum(), info)

    def draw(self, domains: Domains) -> np.ndarray:
        """The mixtures that are tried, float64 [trials, D], no two alike."""
        rng = np.random.default_rng([self.seed % 2**63, 0])
        prior = domains.share**self.prior_power
        prior, limit = prior / prior.sum(), np.minimum(15 * domains.share, 1)
        strengths = np.logspace(np.log10(0.1), np.log10(5), 15)
        mixtures: dict[bytes, np.ndarray] = {}
        for _ in range(1000 * self.trials):
            mixture = rng.dirichlet(strengths[rng.integers(15)] * prior)
            if (mixture > limit).any():
                continue
            mixture = np.where(mixture < 2e-4, 0.0, mixture)
            mixture = mixture / mixture.sum()
            mixtures[mixture.round(6).tobytes()] = mixture
            if len(mixtures) == self.trials:
                return np.stack(list(mixtures.values()))
        raise CurateError(
            f"{self.trials} different mixtures of {len(domains.names)} domains could not be drawn, each with at most "
            "15 times its share of the pool; take fewer trials, or mix fewer domains."
        )

    def fit(self, mixtures: np.ndarray, losses: np.ndarray) -> tuple[Predict, dict[str, float]]:
        """A predictor of the loss of mixtures, and how well it ranks held-out ones."""
        kinds = {"lightgbm": _lightgbm, "linear": _linear}
        candidates = kinds if self.regressor == "auto" else {self.regressor: kinds[self.regressor]}
        parts = np.random.default_rng([self.seed % 2**63, 2]).permutation(len(losses)) % self.folds
        info, rounds = {}, {}
        for kind, fit in candidates.items():
            predicted, used = np.zeros(len(losses)), []
            for fold in range(self.folds):
                held_out = parts == fold
                predict, n = fit(mixtures[~held_out], losses[~held_out], mixtures[held_out], losses[held_out])
                predicted[held_out] = predict(mixtures[held_out])
                used.append(n)
            info[f"cross_validated_{kind}"] = float(np.nan_to_num(spearman(predicted, losses)))
            rounds[kind] = max(1, round(float(np.mean(used))))
        best = max(candidates, key=lambda kind: info[f"cross_validated_{kind}"])
        predict, _ = kinds[best](mixtures, losses, rounds=rounds[best])
        return predict, info


def _linear(
    x: np.ndarray, y: np.ndarray, held_x: Any = None, held_y: Any = None, rounds: int = 1
) -> tuple[Predict, int]:
    """A linear model of the mixtures, by least squares. Their weights sum to 1, so it needs no intercept."""
    slope = np.linalg.lstsq(x, y, rcond=None)[0]
    return lambda mixtures: mixtures @ slope, rounds


def _lightgbm(
    x: np.ndarray, y: np.ndarray, held_x: Any = None, held_y: Any = None, rounds: int = 1000
) -> tuple[Predict, int]:
    """Boosted trees; stopped early when held-out losses, if given, are no longer predicted better."""
    try:
        import lightgbm
    except ImportError:
        raise CurateError(
            "regmix needs LightGBM, which is not installed: `pip install 'curate-lm[mix]'`, or --set regressor=linear."
        ) from None
    settings = {"objective": "regression", "metric": "l2", "learning_rate": 0.01, "verbosity": -1, "seed": 42}
    settings |= {"deterministic": True, "num_threads": 1}
    training = lightgbm.Dataset(x, y, free_raw_data=False)
    validation = [] if held_x is None else [lightgbm.Dataset(held_x, held_y, reference=training)]
    stop = [lightgbm.early_stopping(3, verbose=False)] if validation else []
    booster = lightgbm.train(settings, training, rounds, valid_sets=validation, callbacks=stop)
    n_rounds = booster.best_iteration if validation else rounds
    return lambda mixtures: np.asarray(booster.predict(mixtures, num_iteration=n_rounds)), n_rounds
