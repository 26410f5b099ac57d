"""mix: domain weights for training mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

import curate
from curate.cli.console import notes, say
from curate.cli.options import as_json_option, by_owner, grouped, models_of, workspace
from curate.errors import CurateError
from curate.kinds import registry
from curate.text_table import counted, table

if TYPE_CHECKING:  # loaded only when the command runs
    from curate.runs.proxies import Proxy
    from curate.store.workspace import Workspace
    from curate.verbs.mix import MixtureResult, MixtureSpec


def _spec(realise: str, max_epochs: str, token_count: str | None, **fields: Any) -> MixtureSpec:
    from curate.verbs.mix import MixtureSpec

    exact, most = realise == "quota", _epochs(max_epochs)
    return MixtureSpec(exact=exact, most_epochs=most, token_count=token_count, **fields)


@dataclass(frozen=True)
class _ProxyOptions:
    """What is said of proxies: their initial model, what they are evaluated on, and what trains them."""

    model: str | None
    targets: Sequence[str]
    metrics: Sequence[str]
    executor: str | None
    workers: int | None

    @property
    def metric_names(self) -> Sequence[str]:
        """The metrics; the default only if there are targets."""
        return self.metrics or (("loss",) if self.targets else ())

    @property
    def owners(self) -> list[str]:
        """The owners that --set may name."""
        return ["train", "model", self.executor or "local", *self.metric_names]

    def proxy(self, own: Mapping[str, dict[str, str]]) -> Proxy | None:
        """How proxies are trained; None if no model is named. own: the settings of each owner."""
        from curate.runs.evaluation import EvalSpec
        from curate.runs.proxies import Proxy
        from curate.training.settings import TrainSettings

        if self.metrics and not self.targets:
            raise CurateError("--metric sets how proxies are evaluated; add --target NAME to evaluate them on.")
        models = models_of([self.model] if self.model else [], own["model"])
        if set(models) - {""}:
            raise CurateError(f"--model {self.model}: only one model is used here, so name it without a role.")
        if not models:
            self._refuse_alone(own)
            return None
        executor = self.executor or "local"
        workers = {"workers": str(self.workers)} if self.workers is not None else {}
        metrics = [registry.make("metric", metric, own[metric]) for metric in self.metric_names]
        return Proxy(
            models[""],
            registry.make("weighting", "uniform"),
            registry.with_settings(TrainSettings, own["train"], "the proxies' training"),
            [EvalSpec(target, metric, "val") for target in self.targets for metric in metrics],
            registry.make("executor", executor, {**workers, **own[executor]}),
        )

    def _refuse_alone(self, own_settings: Mapping[str, dict[str, str]]) -> None:
        if self.targets or self.metrics or own_settings["train"] or self.workers is not None or self.executor:
            raise CurateError(
                "--target, --metric, --executor, --workers and --set train.… are for proxies: give their initial "
                "model, by --model MODEL."
            )


@click.command()
@click.argument("name")
@workspace(writes=True)
@click.option("--mixer", "mixer_name", required=True, metavar="METHOD", help="See `curate methods mixer`.")
@grouped(
    "spec",
    _spec,
    click.option(
        "--rows",
        type=int,
        metavar="N",
        help="Samples drawn per epoch of the mixture.  [default: the number of samples]",
    ),
    click.option("--tokens", type=float, metavar="N", help="Or tokens per epoch; weights are then shares of tokens."),
    click.option("--token-count", metavar="SQL", help="Number of tokens of a sample.  [default: n_chars / 4.0]"),
    click.option(
        "--realise",
        type=click.Choice(["quota", "probability"]),
        default="quota",
        show_default=True,
        help="quota: every epoch has each domain's exact quota; probability: every draw's domain is random.",
    ),
    click.option(
        "--max-epochs",
        default="4",
        show_default=True,
        metavar="F",
        help="Maximum passes over a domain's samples in one epoch of the mixture (1: no repeats); none: no limit.",
    ),
    click.option("--lower", is_flag=True, help="Cap domains at --max-epochs and give the excess to the others."),
    click.option("--by", metavar="SQL", help="Expression over `samples`: the score of mixers that use one (softmax)."),
    click.option(
        "--domain", metavar="SQL", default="source", show_default=True, help="Expression for a sample's domain."
    ),
    click.option("--manifest", metavar="NAME", help="Mix the samples of this manifest.  [default: the whole pool]"),
    click.option("--seed", default=0, show_default=True, help="Random seed of the proxies' draws."),
    click.option("--allow-stale", is_flag=True, help="Use scores that are stale or incomplete."),
)
@grouped(
    "proxies",
    _ProxyOptions,
    click.option("--model", "model", metavar="MODEL", help="Initial model of the proxies (doremi, regmix)."),
    click.option(
        "--target", "targets", multiple=True, metavar="NAME", help="Targets that proxies are evaluated on (split val)."
    ),
    click.option(
        "--metric",
        "metrics",
        multiple=True,
        metavar="METHOD",
        help="Metric that proxies are evaluated by.  [default: loss]",
    ),
    click.option("--executor", "executor", metavar="METHOD", help="What runs regmix's proxies.  [default: local]"),
    click.option("--workers", type=int, metavar="N", help="Number of proxies trained in parallel."),
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="[OWNER.]FIELD=VALUE",
    help="A setting of the mixer (trials=64), of the proxies' training (train.steps=200), of the model "
    "(model.context=512), of a metric or of the executor.",
)
@click.option(
    "--fresh", is_flag=True, help="Replace a manifest of that name that was made otherwise, or that others need."
)
@as_json_option
def mix(
    ws: Workspace,
    name: str,
    mixer_name: str,
    spec: MixtureSpec,
    proxies: _ProxyOptions,
    settings: tuple[str, ...],
    fresh: bool,
    as_json: bool,
) -> None:
    """Compute domain weights and store them as the mixture NAME, for `curate train` and `curate export`."""
    own_settings = by_owner(["", *proxies.owners], [], settings)
    mixer = registry.make("mixer", mixer_name, own_settings[""])
    mixture = curate.mix(ws, name, mixer, spec, proxy=proxies.proxy(own_settings), fresh=fresh)
    say(mixture, as_json, _text(mixture, spec))


def _text(mixture: MixtureResult, spec: MixtureSpec) -> str:
    columns = {"source": "domain", "weight": "weight", "rows": "draws", "tokens": "tokens", "available": "samples"}
    columns["epochs"] = "epochs"
    how = "by quota" if spec.exact else "at random"
    head = f"Mixture {mixture.name}: {mixture.rows:,} draws {how}, about {mixture.tokens:,} tokens; weights are shares "
    head += f"of {'samples' if mixture.unit == 'rows' else 'tokens'}."
    info = [", ".join(f"{key} {value:.4g}" for key, value in mixture.told.items())] if mixture.told else []
    without = mixture.without_domain
    left_out = [f"{counted(without, 'sample')} have no domain and are not drawn"] if without else []
    capped = [f"capped at {spec.most_epochs:g} epochs: {', '.join(mixture.lowered)}"] if mixture.lowered else []
    return f"{head}\n{table(mixture.by_domain, columns)}" + notes([*info, *capped, *left_out, *mixture.warnings])


def _epochs(text: str) -> float | None:
    try:
        return None if text.lower() == "none" else float(text)
    except ValueError:
        raise CurateError(f"--max-epochs {text}: a number above 0, or none.") from None
