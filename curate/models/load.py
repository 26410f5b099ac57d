"""Loading a model's weights and tokenizer by name: a hub id, a folder, a GGUF file or a short name.

Safe by default: weights are read only from safetensors or GGUF, and no code from a model's repository is run.
"""

from __future__ import annotations

import functools
import io
from contextlib import nullcontext, redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from curate.errors import CurateError
from curate.models.adapters import with_adapter
from curate.models.choice import (
    ADAPTER,
    CONFIG,
    MIXED,
    ModelChoice,
    base_of,
    require_safe_adapter,
    resolve,
    weight_files,
    without_seed,
)
from curate.models.config_sizes import refuse_too_large, refuse_unlike_weights
from curate.models.gguf_cache import unpacked
from curate.models.gguf_rope import complete_from_gguf
from curate.models.gguf_tokenizer import set_pre_tokenizer
from curate.models.loading_report import refuse_not_causal, refuse_unlike
from curate.models.quiet import quiet

_CAUSAL = "a causal language model"
_CLASSIFIER = "a sequence classifier"


def load(choice: ModelChoice, attention: str = "auto") -> tuple[Any, Any]:
    """A causal language model, in evaluation mode on its device, and its fast tokenizer. attention: how transformers
    computes it; auto: as it likes.

    For a folder that holds only a peft adapter: its base model with the adapter merged into it.

    Raises CurateError if there is no such model or tokenizer, the vocabularies do not match, or weights are damaged or
    not finite.
    """
    # By its module: for transformers' own face a type checker reads every model there is.
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    path = resolve(choice.name)
    if (path / ADAPTER).exists():
        base = base_of(path)
        require_safe_adapter(path, choice)
        model, tokenizer = load(replace(choice, name=base), attention)
        return with_adapter(model, path).merge_and_unload().requires_grad_(False), tokenizer
    model, tokenizer = _loaded(choice, AutoModelForCausalLM, _CAUSAL, attention)
    refuse_not_causal(path, model)
    return model, tokenizer


def save_plain(choice: ModelChoice, folder: Path) -> None:
    """Save a model and its tokenizer as a whole model in float32; an adapter is merged into its base."""
    model, tokenizer = load(replace(choice, dtype="float32", device="cpu"))
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_encoder(choice: ModelChoice) -> tuple[Any, Any]:
    """The transformer of a sentence encoder, without an output head, and its tokenizer; otherwise like `load`."""
    from transformers.models.auto.modeling_auto import AutoModel

    return _loaded(choice, AutoModel, "a sentence encoder")


def load_classifier(choice: ModelChoice) -> tuple[Any, Any]:
    """A model with one output per label, and its tokenizer; otherwise like `load`."""
    from transformers.models.auto.modeling_auto import AutoModelForSequenceClassification

    return _loaded(choice, AutoModelForSequenceClassification, _CLASSIFIER)


def load_tokenizer(choice: ModelChoice) -> Any:
    """Only a model's fast tokenizer. Raises CurateError if there is none."""
    return _tokenizer(choice)


def _place(path: Path, choice: ModelChoice) -> tuple[Path, dict[str, Any]]:
    """The folder a model is in, and the arguments for `from_pretrained`."""
    options: dict[str, Any] = {"trust_remote_code": choice.allow_remote_code}
    return (path.parent, {**options, "gguf_file": path.name}) if path.is_file() else (path, options)


def _loaded(choice: ModelChoice, kind: Any, description: str, attention: str = "auto") -> tuple[Any, Any]:
    import torch

    path = resolve(choice.name)
    _described(choice, kind, "meta")
    tokenizer = _tokenizer(choice)
    device = _device(choice)
    auto = torch.bfloat16 if device.startswith("cuda") else torch.float32
    dtype = {"auto": auto, MIXED: torch.float32}.get(choice.dtype) or getattr(torch, choice.dtype)
    attention = "eager" if choice.count_flops else attention
    read = functools.partial(_with_weights, choice, kind, description, attention)

    def unpack(folder: Path) -> None:
        with quiet():
            read(path, torch.float32).save_pretrained(folder)

    name = kind.__name__ + ("-unused" if choice.allow_unused else "")
    plain = unpacked(path, name, unpack) if path.is_file() else None
    model = read(plain or path, dtype)
    _check(model, tokenizer, path)
    return model.eval().requires_grad_(False).to(device), tokenizer


def _with_weights(choice: ModelChoice, kind: Any, description: str, attention: str, path: Path, dtype: Any) -> Any:
    """The model of a folder or a GGUF file with its weights. Raises CurateError unless they are all and no others."""
    folder, options = _place(path, choice)
    safe = {} if path.is_file() or choice.allow_pickle else {"use_safetensors": True}
    how = {} if attention == "auto" else {"attn_implementation": attention}
    reporting = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # refuse_unlike says what is wrong
    try:
        with (
            quiet(),
            redirect_stderr(io.StringIO()) if path.is_file() else nullcontext(),
        ):  # the GGUF reader's progress bar cannot be disabled
            model, report = kind.from_pretrained(folder, **options, **safe, **how, **reporting, dtype=dtype)
    except Exception as error:  # weight readers raise many types; all mean that reading failed  # noqa: BLE001
        raise CurateError(f"{path} cannot be loaded as {description} ({_first(error)}).") from None
    refuse_unlike(
        path, model, report, encoder=description not in (_CAUSAL, _CLASSIFIER), allow_unused=choice.allow_unused
    )
    if path.is_file():  # GGUF weights are dequantized on loading; with the old flags the model could not be saved
        complete_from_gguf(path, model, choice.allow_unused)
        vars(model.config).pop("quantization_config", None)
        model.hf_quantizer, model.is_quantized = None, False
    return model


def _device(choice: ModelChoice) -> str:
    import torch

    return choice.device if choice.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")


def load_shapes(choice: ModelChoice, encoder: bool = False) -> Any:
    """A model by its configuration alone, on its device; called where tensors are fake (curate.models.skeleton).

    Raises CurateError if the configuration cannot be read.
    """
    from transformers.models.auto.modeling_auto import AutoModel, AutoModelForCausalLM

    kind: Any = AutoModel if encoder else AutoModelForCausalLM
    return _described(choice, kind, _device(choice)).eval().requires_grad_(False)


def _described(choice: ModelChoice, kind: Any, device: str) -> Any:
    """A model as its configuration describes it, on a device that takes no memory, if its files can hold that."""
    import torch
    from transformers.models.auto.configuration_auto import AutoConfig

    path = resolve(choice.name)
    folder, options = _place(path, choice)
    files = [path] if path.is_file() else weight_files(path, choice)

    def save_config(into: Path) -> None:
        AutoConfig.from_pretrained(folder, **options).save_pretrained(into)

    try:
        with quiet():
            if plain := unpacked(path, "config", save_config) if path.is_file() else None:
                folder, options = plain, {}
            config = AutoConfig.from_pretrained(folder, **options)
            refuse_unlike_weights(path, config, files)
            with torch.device(device):
                model = kind.from_config(config, dtype=torch.float32, trust_remote_code=choice.allow_remote_code)
    except CurateError:
        raise
    except Exception as error:  # as above  # noqa: BLE001
        raise CurateError(f"the configuration of {path} cannot be read ({_first(error)}).") from None
    refuse_too_large(path, model, files)
    return model


def _tokenizer(choice: ModelChoice) -> Any:
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    path = resolve(choice.tokenizer or choice.name)
    folder, options = _place(path, choice)
    if path.is_dir() and not any((path / n).exists() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        place, remedy = path, "put the model's there, as tokenizer.save_pretrained does"
        if choice.name.startswith(CONFIG) and not choice.tokenizer:
            place, remedy = Path(without_seed(choice.name)), "put one beside it, or name one by --set model.tokenizer"
        raise CurateError(f"{place} has no tokenizer (tokenizer.json); {remedy}.")
    try:
        if plain := unpacked(path, "tokenizer", functools.partial(_save_tokenizer, path)) if path.is_file() else None:
            folder, options = plain, {}
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except Exception as error:  # as above  # noqa: BLE001
        raise CurateError(f"the tokenizer of {path} cannot be loaded ({_first(error)}).") from None
    if path.is_file():
        set_pre_tokenizer(tokenizer, path)
    if not tokenizer.is_fast:
        raise CurateError(f"the tokenizer of {path} is not a fast one; convert it to tokenizer.json.")
    if choice.chat_template:
        if not Path(choice.chat_template).is_file():
            raise CurateError(f"{choice.chat_template}: there is no such chat template.")
        tokenizer.chat_template = Path(choice.chat_template).read_text(encoding="utf-8")
    return tokenizer


def _save_tokenizer(file: Path, folder: Path) -> None:
    """Save the tokenizer of a GGUF file. Raises OSError, so that it is not kept, if it would be read as another."""
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.save_pretrained(folder)
    read = AutoTokenizer.from_pretrained(folder)
    if any(_of_tokenizer(tokenizer)[name] != value for name, value in _of_tokenizer(read).items()):
        raise OSError("it would be read as another tokenizer")


def _of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    names = ("chat_template", "special_tokens_map", "padding_side", "model_max_length", "is_fast")
    return {"backend": tokenizer.backend_tokenizer.to_str(), **{name: getattr(tokenizer, name) for name in names}}


def _check(model: Any, tokenizer: Any, path: Path) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise CurateError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens and the model only {rows}; they do not belong together."
        )
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise CurateError(f"{path}: the weights in {name} are not all finite; the file is damaged or diverged.")


def _first(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()[:2]]  # a validation says what in the second
    first = lines[0] if lines and not lines[0].endswith(":") else " ".join(lines)
    return f"{type(error).__name__}: {first[:200].rstrip('.')}" if lines else type(error).__name__
