"""Training settings: everything except the model, the data and the weighting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from curate.errors import CurateError

_HUGGING_FACE = {
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "learning_rate": "lr",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup",
    "adam_beta1": "beta1",
    "adam_beta2": "beta2",
    "adam_epsilon": "eps",
    "max_grad_norm": "clip",
    "target_modules": "lora_targets",
    "torch_compile": "compile",
    "save_steps": "checkpoint_every",
    "save_total_limit": "keep_checkpoints",
    "eval_steps": "eval_every",
}
_BOTH = "batch_size and batch_tokens both say how large a step is; give one of them."
_PASS_ON_CPU = 64  # tokens: tests/bench/padding.py finds 35 (135M parameters) to 70 (a tiny model)
_PER_DEVICE, _ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"


def our_name(setting: str) -> str:
    """A setting's name here; of one by Hugging Face's name, ours."""
    return _HUGGING_FACE.get(setting, setting)


def from_hugging_face(settings: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
    """Settings given as text or values, those by the names of Hugging Face's TrainingArguments by ours.

    Its batch is per process: per_device_train_batch_size becomes micro_batch_size, and that times
    gradient_accumulation_steps times `processes` batch_size. Raises CurateError for one setting given by both names.
    """
    ours = {_HUGGING_FACE.get(name, name): text for name, text in settings.items()}
    if len(ours) < len(settings):
        twice = next(theirs for theirs, name in _HUGGING_FACE.items() if theirs in settings and name in settings)
        raise CurateError(f"--set {twice} and --set {_HUGGING_FACE[twice]} are the same setting; give one of them.")
    if "batch_tokens" in ours and str(ours["batch_tokens"]) != "0" and {"batch_size", _PER_DEVICE} & ours.keys():
        raise CurateError(_BOTH)
    if _PER_DEVICE not in ours:
        return ours
    if given := [name for name in ("batch_size", "micro_batch_size") if name in ours]:
        raise CurateError(f"--set {_PER_DEVICE} sets {given[0]} too; give one of them.")
    rows, accumulation = str(ours.pop(_PER_DEVICE)), str(ours.pop(_ACCUMULATION, 1))
    for name, text in ((_PER_DEVICE, rows), (_ACCUMULATION, accumulation)):
        if not text.isdecimal() or not int(text):
            raise CurateError(f"--set {name}={text}: it is a whole number above 0.")
    return {**ours, "micro_batch_size": rows, "batch_size": str(int(rows) * int(accumulation) * processes)}


@dataclass(frozen=True)
class TrainSettings:
    """The settings of `curate train --set FIELD=VALUE`. A row is one sample or, with packing, as many as fit the
    context."""

    epochs: float = 1.0
    """Passes over the training set (num_train_epochs); ignored if `steps` is set."""
    steps: int = 0
    """Number of optimizer steps (max_steps); 0: as many as `epochs` take."""
    flops: float = 0.0
    """Budget in FLOPs, as the ledger counts them, instead of `epochs` or `steps`: as many steps as it pays for, with
    the weighting's looks at targets and candidates; 0: none."""
    flops_for: Literal["training", "everything"] = "training"
    """What that budget pays for: the training alone, or also the scores, warm-ups and selection before it."""
    batch_size: int = 32
    """Global batch size: rows per optimizer step, over all processes."""
    batch_tokens: int = 0
    """Tokens per optimizer step, over all processes, instead of batch_size: an epoch's rows, in their order, as long as
    these (without padding) are not exceeded; 0: batch_size rows."""
    micro_batch_size: int = 0
    """Rows per forward and backward pass in a process (per_device_train_batch_size), with gradient accumulation up to
    batch_size; 0: all rows of a step. Halved when memory runs out."""
    lr: float = 2e-5
    """Peak learning rate (learning_rate)."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning rate schedule after the warm-up (lr_scheduler_type)."""
    warmup: float = 0.03
    """Fraction of the steps over which the learning rate rises linearly from 0 (warmup_ratio)."""
    min_lr: float = 0.0
    """Learning rate at the end of the schedule."""
    weight_decay: float = 0.0
    """AdamW's weight decay, on matrices only, not on norms and biases."""
    beta1: float = 0.9
    """AdamW's beta1 (adam_beta1)."""
    beta2: float = 0.999
    """AdamW's beta2 (adam_beta2)."""
    eps: float = 1e-8
    """AdamW's epsilon (adam_epsilon)."""
    clip: float = 1.0
    """Maximum gradient norm (max_grad_norm); 0: no clipping."""
    loss: Literal["answers", "all"] = "answers"
    """Supervised tokens: answers for those of the assistant's turns (of raw text, all tokens), all for every token."""
    add_eos_token: bool = True
    """End a raw text with the tokenizer's EOS token, so that the model learns where a document ends; no text ends twice
    (a chat ends as its template has it)."""
    reduction: Literal["token", "sample"] = "token"
    """A step's loss: the mean over all its tokens, or the mean over samples of each sample's mean loss."""
    packing: bool = False
    """Pack several samples into a row up to the context, each with its own attention, positions and weight."""
    split: bool = False
    """Train on a raw text longer than the context in pieces, instead of truncating it."""
    order: Literal["shuffle", "rank", "pool"] = "shuffle"
    """Order of samples: shuffled anew every epoch, by the manifest's rank, or as in the pool."""
    lora_r: int = 0
    """LoRA rank; 0: full fine-tuning."""
    lora_alpha: float = 32.0
    """LoRA's alpha: its update is scaled by alpha / r."""
    lora_dropout: float = 0.0
    """LoRA's dropout."""
    lora_targets: str = "all-linear"
    """Modules with LoRA (target_modules), separated by commas (q_proj,v_proj); all-linear: all linear but the head."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of matrix products (trained weights stay float32): auto is bfloat16 (mixed precision) on a GPU."""
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """How attention is computed, by transformers' names: auto is its own choice for the model and the device."""
    compile: bool = False
    """Compile the model's body (torch_compile): the first steps take longer (minutes on a CPU, which gains little)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass instead of storing them; slower, less memory."""
    activation_gib: float = 0.0
    """Memory that a micro-batch may keep for its backward pass, in GiB: one that needs more is divided, and a row that
    needs more alone is computed with gradient checkpointing; 0: 1.5 on a CPU, no limit on a GPU."""
    padding_per_pass: int = 0
    """Tokens of padding that a further pass has to save: a micro-batch is passed in parts of similar length where each
    does, with the same result; 0: 64 on a CPU, where a pass costs about as much; a GPU's are passed whole."""
    fsdp: bool = False
    """Shard the model's layers over the processes (FSDP2), for a model that does not fit one device; embeddings and
    output head stay whole in each. Checkpoints are as one process writes them."""
    checkpoint_every: int = 0
    """Steps between checkpoints (save_steps); 0: only at the end."""
    checkpoint_epochs: bool = False
    """Also save a checkpoint at the end of every epoch."""
    keep_checkpoints: int = 1
    """How many of the latest checkpoints to keep (save_total_limit); 0: all."""
    eval_every: int = 0
    """Steps between evaluations (eval_steps) on the targets given by --eval; 0: only at the end."""
    eval_flops: float = 0.0
    """FLOPs between evaluations on the targets given by --eval, of this training and of what its budget (`flops`) pays
    for before it, so that the curves of runs have their points at the same costs; 0: none."""
    keep_weights: bool = True
    """Record every sample's loss and weight at every step (table `trained`)."""
    tokenize_workers: int = 0
    """Processes that tokenise samples whose tokens are not kept yet (dataset_num_proc); 0: one per core where there are
    many."""
    oversample: int = 4
    """Candidates per sample trained on, for weightings that select within a step (filter_then_weight, max_loss, …)."""
    projection: int = 64
    """Dimensions each side of a layer's gradient is projected to, for weightings that compare gradients; 0: none."""
    target_batch: int = 16
    """Number of random target samples whose gradient a step's candidates are compared with."""
    target_every: int = 1
    """Steps between recomputations of the target's gradient."""
    shuffle_weights: bool = False
    """Control run: shuffle each step's weights among its samples at random."""
    sum_gradients: bool = False
    """Sum the steps' gradients, before clipping, and store the sums with the optimizer's state."""
    count_flops: bool = False
    """Also measure FLOPs (flops_counted) besides the estimate, with eager attention; slower."""

    def __post_init__(self) -> None:
        above_0 = ("epochs", "batch_size", "lr", "eps", "oversample", "target_batch", "target_every")
        below_1 = ("warmup", "beta1", "beta2", "lora_dropout")
        from_0 = (
            "flops",
            "steps",
            "micro_batch_size",
            "batch_tokens",
            "min_lr",
            "projection",
            "weight_decay",
            "clip",
            "lora_r",
            "lora_alpha",
        )
        from_0 += ("activation_gib", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_flops")
        from_0 += ("tokenize_workers", "padding_per_pass")
        for names, rule, valid in (
            (above_0, "a number above 0", lambda value: 0 < value < math.inf),
            (below_1, "at least 0 and below 1", lambda value: 0 <= value < 1),
            (from_0, "0 or more", lambda value: 0 <= value < math.inf),
        ):
            for name in names:
                if not valid(getattr(self, name)):
                    raise CurateError(f"the setting {name} of the training is {rule}, not {getattr(self, name)}.")

        if self.count_flops and (self.compile or self.attn_implementation not in ("auto", "eager")):
            raise CurateError("count_flops counts eager attention; leave out compile and attn_implementation.")
        if self.batch_tokens and self.batch_size != TrainSettings.batch_size:
            raise CurateError(_BOTH)
        if self.flops and self.steps:
            raise CurateError(f"flops={self.flops:g} and steps={self.steps} both say how long to train; give one.")
        if self.split and self.reduction == "sample":
            raise CurateError("split=true splits samples, and reduction=sample averages whole ones; use token.")

    def worth_a_pass(self, device: str) -> int:
        """Tokens of padding that a further pass has to save on a device of the given type; 0: none is taken."""
        return self.padding_per_pass or (_PASS_ON_CPU if device == "cpu" else 0)

    def in_bfloat16(self, device: str) -> bool:
        """Whether matrix products are in bfloat16 on a device of the given type."""
        return self.precision == "bfloat16" or self.precision == "auto" and device == "cuda"

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of step `step` (from 1) of `steps`, as in transformers' schedulers, which start from 0."""
        done, rising = step - 1, math.ceil(self.warmup * steps)
        if done < rising:
            return self.lr * done / rising
        if self.schedule == "constant":
            return self.lr
        progress = (done - rising) / max(1, steps - rising)
        factor = 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
        return self.min_lr + (self.lr - self.min_lr) * max(0.0, factor)
