"""The columns of every table in a workspace (Arrow schemas), and the names that are reserved."""

from __future__ import annotations

import pyarrow as pa

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("extra", pa.string())])

POOL = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("messages", pa.list_(MESSAGE)),  # null for raw text
        ("text", pa.string()),  # null for chat
        ("copies", pa.int32()),
        ("n_chars", pa.int32()),
        ("meta", pa.string()),  # JSON of every other input field
        ("template_kwargs", pa.string()),  # JSON of tools, documents and chat_template_kwargs; null without
        ("rejected", pa.list_(MESSAGE)),  # of a preference pair: the conversation with the other answer; else null
        ("wanted", pa.bool_()),  # whether the last answer is wanted (KTO); null where nothing says so
    ]
)
CONTENT = ("messages", "text", "template_kwargs", "rejected", "wanted")  # the columns that are a sample, and its id
# Columns of samples that files of earlier versions lack: null there.
LATER = {"template_kwargs": pa.string(), "rejected": pa.list_(MESSAGE), "wanted": pa.bool_()}
TARGET = pa.schema([*POOL, ("subtask", pa.string()), ("split", pa.string())])
COPIES = pa.schema([("id", pa.string()), ("copies", pa.int32())])
REJECTS = pa.schema(
    [
        ("file", pa.string()),
        ("line", pa.int64()),  # 1-based line of a JSONL file, 1-based row of any other
        ("reason", pa.string()),
        ("raw", pa.string()),  # truncated
        ("into", pa.string()),  # 'pool', or 'target NAME'
    ]
)
MANIFEST = pa.schema(
    [
        ("id", pa.string()),
        ("row", pa.int64()),
        ("source", pa.string()),
        ("weight", pa.float32()),
        ("repeats", pa.int32()),
        ("rank", pa.int64()),
    ]
)
EXPORTED = pa.schema(  # a selected sample in exports to columnar formats
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("text", pa.string()),
        ("loss_weight", pa.float32()),
        ("rank", pa.int64()),
        ("meta", pa.string()),
        ("template_kwargs", pa.string()),
        ("rejected", pa.list_(MESSAGE)),
        ("wanted", pa.bool_()),
    ]
)
LEDGER = pa.schema(
    [
        ("at", pa.timestamp("us", tz="UTC")),
        ("stage", pa.string()),
        ("methods", pa.list_(pa.string())),
        ("name", pa.string()),
        ("phase", pa.string()),
        ("model", pa.string()),
        ("n_params", pa.int64()),
        ("samples", pa.int64()),
        ("tokens", pa.int64()),
        ("padded_tokens", pa.int64()),
        ("flops_paper", pa.float64()),
        ("flops", pa.float64()),
        ("flops_counted", pa.float64()),
        ("seconds", pa.float64()),
        ("device", pa.string()),
        ("peak_bytes", pa.int64()),
        ("run", pa.string()),
        ("prepared", pa.string()),  # the state that a counting pass made, which several scores may use
        ("float32_rate", pa.float64()),  # FLOP/s of the processor's matrix products, if they were measured
        ("bfloat16_rate", pa.float64()),
    ]
)
LEDGER_ROWS = pa.schema([*LEDGER, ("entry", pa.string()), ("sequence", pa.int64())])  # its name, and its place
RUNS = pa.schema(
    [
        ("name", pa.string()),
        ("state", pa.string()),  # 'complete', or its progress
        ("model", pa.string()),
        ("manifest", pa.string()),  # null: the whole pool
        ("weighting", pa.string()),
        ("mask", pa.string()),  # null: all parameters are trained
        ("trainable", pa.int64()),  # number of trained parameters
        ("optimizer_bytes", pa.int64()),  # of the optimizer state, including a mask's indices
        ("peak_bytes", pa.int64()),  # peak memory: of the GPU, or, without one, of the process
        ("seed", pa.int64()),
        ("steps", pa.int64()),
        ("samples", pa.int64()),  # distinct samples that it trains on
        ("config", pa.string()),  # run.json
    ]
)
METRICS = pa.schema(  # of a run, one row per step
    [
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("loss", pa.float64()),  # mean over the step's supervised tokens
        ("weighted_loss", pa.float64()),  # what was minimised
        ("lr", pa.float64()),
        ("grad_norm", pa.float64()),  # before clipping
        ("samples", pa.int64()),
        ("tokens", pa.int64()),
        ("supervised", pa.int64()),
        ("weight_mean", pa.float64()),
        ("weight_min", pa.float64()),
        ("weight_max", pa.float64()),
        ("effective_samples", pa.float64()),  # (sum w)^2 / sum w^2
        ("chosen", pa.int64()),  # samples that were trained on: those with a non-zero weight
        ("unfit", pa.int64()),  # candidates with a non-finite gradient, which cannot be chosen
        ("fallback", pa.int64()),  # 1 if the weighting's formula gave no weights and a fallback was used
        ("flops", pa.float64()),  # of the step, with looks at targets and candidates
        ("weights", pa.int64()),  # of its documents or tokens, of which effective_samples is a share
    ]
)
TRAINED = pa.schema(  # of a run, one row for every sample at every step
    [
        ("step", pa.int64()),
        ("epoch", pa.int64()),
        ("row", pa.int64()),
        ("weight", pa.float32()),
        ("loss", pa.float32()),
        ("measure", pa.float32()),  # what the weight was computed from: a similarity, a loss, a column
    ]
)
EVALUATIONS = pa.schema(  # of a run, one row for every checkpoint, target and metric
    [
        ("run", pa.string()),
        ("step", pa.int64()),
        ("target", pa.string()),
        ("split", pa.string()),
        ("metric", pa.string()),
        ("settings", pa.string()),  # those that differ from the defaults
        ("shots", pa.int64()),
        ("value", pa.float64()),
        ("questions", pa.int64()),
        ("judged", pa.int64()),
        ("better", pa.string()),  # 'higher' or 'lower'
        ("version", pa.int64()),  # of the metric; null if it was the first, or is a task of the harness
    ]
)
EVALUATION = pa.schema(  # the value of a metric on each question
    [
        ("id", pa.string()),
        ("subtask", pa.string()),
        ("value", pa.float64()),
        ("said", pa.string()),  # the generated answer; null if the metric generates none
        ("error", pa.string()),
    ]
)

MIXTURE = pa.schema(  # a manifest of domains and their rates, instead of samples
    [
        ("source", pa.string()),
        ("weight", pa.float64()),  # sums to 1
        ("rows", pa.int64()),  # draws of an epoch
        ("tokens", pa.int64()),  # expected in these draws
        ("available", pa.int64()),  # samples in the domain
        ("epochs", pa.float64()),  # passes over them in one epoch of the mixture
    ]
)

_MEASURES = (  # of an audit's scorecard (curate.numerics.long_horizon.scorecard)
    *("gain", "score", "tokens", "seconds", "flops", "spread", "spikes", "norm_range", "entropy"),
    *("utility", "adaptation", "early", "forgetting", "transfer", "worst", "out_of_domain", "imbalance"),
    *("concentration", "drift"),
)
AUDITS = pa.schema(  # of audits that have ended, one row for every selector and seed
    [
        ("audit", pa.string()),
        ("budget", pa.string()),  # in words: 25 %
        ("stages", pa.string()),  # their names, in order
        ("trained", pa.string()),  # 'all' parameters, or LoRA's rank and whether it is carried or fresh
        ("selector", pa.string()),
        ("seed", pa.int64()),
        *((name, pa.float64()) for name in _MEASURES),
        ("rank_now", pa.float64()),  # over seeds, by the gain; 1 is the best
        ("rank_later", pa.float64()),  # by the utility
    ]
)
AUDIT_CELLS = pa.schema(  # one row for every performance that an audit measured
    [
        ("audit", pa.string()),
        ("selector", pa.string()),  # base: the model before the first stage
        ("seed", pa.int64()),
        ("stage", pa.int64()),  # from 1; 0 before the first
        ("stage_name", pa.string()),
        ("kind", pa.string()),  # 'during' the stage, at its 'end', or in the 'branch' after it
        ("target", pa.string()),  # of a branch, the next stage's
        ("step", pa.int64()),
        ("value", pa.float64()),  # higher is better: a loss is negative
    ]
)

TRIALS = pa.schema(  # one row for every target example after every training of a trial
    [
        ("trial", pa.string()),
        ("subset", pa.int64()),
        ("repeat", pa.int64()),  # 0 for the first training on the subset
        ("seed", pa.int64()),
        ("samples", pa.int64()),  # of the subset
        ("steps", pa.int64()),
        ("flops", pa.float64()),  # of the training
        ("seconds", pa.float64()),
        ("id", pa.string()),  # of the target example
        ("subtask", pa.string()),
        ("loss", pa.float64()),
        ("base", pa.float64()),  # its loss before training
    ]
)

# Views of `curate sql`, and columns of `samples`: names that no score may take.
VIEWS = (
    *("pool", "targets", "rejects", "ledger", "runs", "metrics", "trained", "evaluations", "samples"),
    *("audits", "audit_cells", "trials"),
)
POOL_COLUMNS = (*POOL.names, "row")
