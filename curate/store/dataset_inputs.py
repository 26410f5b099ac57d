"""Datasets as inputs: folders that `save_to_disk` or a hub snapshot left, and the hub itself; always of one split.

Rows of a test split that get into a pool spoil every evaluation on it, so a split other than train is read only if it
is named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.errors import CurateError

TRAIN = "train"
_KEYWORDS = {  # as `datasets` names splits
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # files without samples
_HUB = re.compile(
    r"(?:hf:)?(?P<name>[\w.-]+/[\w.-]+)(?::(?P<first>[\w.-]+))?(?::(?P<second>\w+))?"
    r"(?:@(?P<revision>[\w./-]+))?(?:#(?P<split>\w+))?"
)


def split_of(path: Path, folder: Path) -> str | None:
    """The split that a file below a folder is named after, by a word of its name or of a folder's; None for others.

    train-00000-of-00001.parquet, gsm8k_test.jsonl, gsm8k.test.v2.jsonl, validation/part-0.parquet: as `datasets` finds
    them, but for one split each, of the first word or else the last that names one.
    """
    for name in (path.name, *reversed(path.relative_to(folder).parts[:-1])):
        first, *others = re.split(r"[-_. \d]+", name.lower())
        for word in (first, *reversed(others)):
            if word in _KEYWORDS:
                return _KEYWORDS[word]
    return None


def mixed_splits(files: Sequence[Path]) -> str:
    """What to say of files that were named one by one, or by a pattern, where splits beside train are among them; ''
    where none are."""
    splits = [split_of(path, path.parent) for path in files]
    others = sorted({split for split in splits if split and split != TRAIN})
    if TRAIN not in splits or not others:
        return ""
    named = ", ".join(path.name for path, split in zip(files, splits, strict=True) if split in others)
    return (
        f"files of the splits {', '.join(others)} are read beside train ({named}), since they were named; leave them "
        "out, or give their folder, of which train alone is read"
    )


def of_split(folder: Path, files: Sequence[Path], split: str | None) -> tuple[list[Path], str]:
    """The files of a split, and a note on those that are left out.

    split: None for train and every file that is named after no split. Raises CurateError if nothing is left.
    """
    splits = {path: split_of(path, folder) for path in files}
    wanted = _KEYWORDS.get(split.lower(), split) if split else TRAIN
    kept = [path for path in files if splits[path] == wanted or split is None and splits[path] is None]
    named = sorted({name for name in splits.values() if name and name != wanted})
    if not kept:
        raise CurateError(f"{folder}: has files of the splits {', '.join(named)} only; name one: --split {named[0]}."
                          if named else f"{folder}: has no files of a split '{split}'.")  # fmt: skip
    if len(kept) == len(files):
        return kept, ""
    others = f"the splits {', '.join(named)}" if named else "no split"
    return kept, f"{folder}: {len(files) - len(kept)} files of {others} are not read (--split NAME reads another)"


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the folder."""
    return (folder / "state.json").exists() or (folder / "dataset_dict.json").exists()


def is_empty(folder: Path) -> bool:
    """Whether a saved dataset has no rows at all, which `datasets` writes but does not read."""
    state = folder / "state.json"
    return state.exists() and not json.loads(state.read_text(encoding="utf-8")).get("_data_files")


def load_saved(folder: str, split: str | None) -> Any:
    """A dataset that `save_to_disk` wrote. Raises CurateError for several splits without the wanted one."""
    import datasets

    return one_split(folder, datasets.load_from_disk(folder), split)


@dataclass(frozen=True)
class HubDataset:
    """owner/name[:CONFIG][@REVISION][#SPLIT] on the hub. first: a configuration or, without one of that name, a
    split."""

    name: str
    first: str | None = None
    second: str | None = None
    revision: str | None = None
    split: str | None = None

    @classmethod
    def of(cls, given: str) -> HubDataset | None:
        """The dataset that a text names; None if it is no such name."""
        match = _HUB.fullmatch(given)
        return cls(**match.groupdict()) if match else None

    def load(self, split: str | None = None) -> Any:
        """The rows of one split. Raises CurateError."""
        wanted = self.split or self.second or split
        try:
            data = self._loaded(self.first)
        except CurateError as no_configuration:
            if not self.first or wanted:
                raise
            with suppress(CurateError):
                return one_split(self.name, self._loaded(None), self.first)
            raise no_configuration from None
        return one_split(self.name, data, wanted)

    def _loaded(self, config: str | None) -> Any:
        import datasets

        try:
            return datasets.load_dataset(self.name, config, revision=self.revision)
        except Exception as error:  # the library's errors have no common base class  # noqa: BLE001
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise CurateError(
                f"{self.name}: neither a file here nor a dataset the hub gave ({type(error).__name__}: {first}); check "
                "the name and the network, and name its configuration if it has several: owner/name:CONFIG."
            ) from None


def one_split(path: str, data: Any, requested: str | None) -> Any:
    """The requested split of a dataset, by default train or the only one; never a mixture of splits."""
    if not isinstance(data, Mapping):
        return data
    split = requested or (TRAIN if TRAIN in data else next(iter(data)) if len(data) == 1 else None)
    if split not in data:
        raise CurateError(f"{path}: has splits {', '.join(data)}; name one: --split NAME, or HUB_ID#SPLIT.")
    return data[split]
