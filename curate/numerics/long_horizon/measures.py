"""How the measures of an audit are defined, where the paper leaves it open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from curate.numerics.long_horizon.matrix import Window


@dataclass(frozen=True)
class Measures:
    """How the measures are defined where the paper leaves them open. The settings of `[measures]`."""

    alpha: float = 1.0
    """Weight of future adaptation in the long-horizon utility."""
    beta: float = 1.0
    """Weight of forgetting, which is subtracted."""
    gamma: float = 1.0
    """Weight of the out-of-domain performance."""
    window: Window = "start"
    """Forgetting is the drop from the best earlier value since the start, the model before all stages with it (the
    paper's best historical score), or since the stage itself (own)."""
    forgetting: Literal["stages", "tasks"] = "stages"
    """F_t of the utility: stages for the mean drop of the earlier stages' targets after stage t (the paper's text),
    tasks for the drop of stage t's own target in the end."""
    with_last: bool = False
    """Whether the final value counts towards that best, so that no drop is negative."""
    clip: bool = False
    """Whether a rise counts as 0 in forgetting."""
    utilities: Literal["raw", "normalized"] = "raw"
    """Gain and utility of the values as they are, or of normalized ones: each target, branch and out-of-domain target
    from its lowest value in the audit, 0, to its highest, 1."""
    normalizer: Literal["minmax", "none"] = "minmax"
    """Scaling of the tasks' scores in imbalance: from the worst selector to the best, or none."""
    ddof: int = 0
    """Degrees of freedom subtracted in imbalance (numpy's ddof)."""
    axis: Literal["tokens", "steps"] = "tokens"
    """The x axis of the area under a learning curve."""
    from_start: bool = True
    """Whether the curve begins before the branch's first step, or with the first evaluation after it."""
    threshold: float = 0.5
    """The early threshold: this share of the total gain of the first selector's branch, averaged over seeds."""
    clusters: str = "source"
    """SQL over `samples`: the skill of a sample in capability entropy."""
    log_base: float = 0.0
    """Base of the logarithm in capability entropy; 0: e."""
    normalize_entropy: bool = False
    """Divide capability entropy by the logarithm of the number of skills."""
    running: int = 10
    """Steps of the running mean in training stability."""
    gradients: int = 128
    """Number of selected samples whose gradients update concentration is computed from; 0: none."""
    projection: int = 32
    """Dimensions that each side of a layer's gradient is projected to for this; 0: no projection."""
