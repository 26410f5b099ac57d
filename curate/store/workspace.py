"""A workspace: one directory in open formats. This module defines all paths, and which names are free."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import orjson
import pyarrow as pa

from curate.errors import CurateError, DamagedError, nearest, require
from curate.hashing import fingerprint
from curate.store.commits import Parts
from curate.store.encoding import read_json, read_table, write_json
from curate.store.files import replace_tree, sweep_dropped, write_atomic
from curate.store.ledger import close_dead_accounts, noted_if_read_only
from curate.store.locks import lock
from curate.store.object_store import Location, location
from curate.store.schema import POOL_COLUMNS, TARGET, VIEWS

__version__ = version("curate-lm")
FORMAT = 2  # 1 has no lists of what is there (curate.store.contents)
TABLES = {"score": "scores", "vectors": "vectors"}  # kinds of tables aligned with the pool, and their folders
MARKER = "workspace.json"
_SAID = {"format", "created", "curate", "special_tokens"}  # in it
_COMPLETE = "complete"  # the file that marks a fresh table as ready to be swapped in
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Shard:
    """One immutable part of the pool. n_chars: characters of text in it."""

    name: str  # part-00000
    path: Location
    start: int  # position of its first row in the pool
    rows: int
    n_chars: int
    sha256: str
    columns: frozenset[str]


@cache
def _sql_words() -> frozenset[str]:
    """The words that name nothing in SQL unless they are quoted."""
    import duckdb

    query = "select keyword_name from duckdb_keywords() where keyword_category <> 'unreserved'"
    with duckdb.connect() as connection:
        return frozenset(row[0] for row in connection.execute(query).fetchall())


def pool_fingerprint(shards: Iterable[Shard]) -> str:
    """A fingerprint of the pool: changes when rows are appended, not when a stored row gains copies."""
    return fingerprint([shard.sha256 for shard in shards if shard.rows])


@dataclass(frozen=True)
class Workspace:
    """Paths and names of one workspace. Cheap to construct; records are read on demand.

    readable: absolute paths outside it that SQL may read too. trusted: settings of models (allow_pickle,
    allow_remote_code) that hold where a file records or plans them. wait: for how many seconds commands that write wait
    for a part that another process writes. Whoever opens the workspace says so, never a file. pinned: the records of
    the pool's parts that it is held to; None: those that there are.
    """

    path: Location
    readable: tuple[str, ...] = ()
    trusted: tuple[str, ...] = ()
    wait: float = 0.0
    pinned: Mapping[str, dict[str, Any]] | None = field(default=None, compare=False, repr=False)

    def with_pinned_pool(self) -> Workspace:
        """The workspace with the pool as it is now: parts that are ingested later do not exist for it."""
        return self if self.pinned is not None else replace(self, pinned=self.pool.records())

    def special_tokens(self) -> Literal["text", "parse"]:
        """How models' control tokens in texts are read, unless a command says otherwise: as text, but parsed in a
        workspace made before there was this rule, so that its tables stay alike."""
        return "text" if read_marker(self.path).get("special_tokens") == "text" else "parse"

    @property
    def pool(self) -> Parts:
        """The parts of the pool."""
        return Parts(self.path / "pool", numbered=True, pinned=self.pinned)

    def shards(self) -> list[Shard]:
        """The pool's shards in order."""
        shards, start = [], 0
        for name, record in self.pool.records().items():
            path = self.pool.path(name)
            shards.append(
                Shard(
                    name, path, start, record["rows"], record["n_chars"], record["sha256"], frozenset(record["schema"])
                )
            )
            start += record["rows"]
        return shards

    def table_folder(self, kind: str, name: str) -> Location:
        """The folder of a table with the same shards as the pool; kind: 'score' or 'vectors'."""
        return self.path / TABLES[kind] / name

    def score_folder(self, name: str) -> Location:
        """The folder of a score."""
        return self.table_folder("score", name)

    def staging_folder(self, kind: str, name: str) -> Location:
        """The folder in which a new table is computed beside an older one of the same name, until they are swapped."""
        return self.path / TABLES[kind] / f".{name}.fresh"

    def swap_table(self, kind: str, name: str) -> None:
        """Replace the old table by the complete new one. Requires holding the lock."""
        write_atomic(self.staging_folder(kind, name) / _COMPLETE, b"")
        self.finish_swap(kind, name)

    def finish_swap(self, kind: str, name: str) -> None:
        """Finish a swap, possibly one that was interrupted."""
        if (self.staging_folder(kind, name) / _COMPLETE).exists():
            replace_tree(self.staging_folder(kind, name), self.table_folder(kind, name), marker=recipe_file(kind))
        (self.table_folder(kind, name) / _COMPLETE).unlink(missing_ok=True)

    def table_names(self, kind: str) -> list[str]:
        """The names of the tables of a kind; a table exists once its recipe file does."""
        folders = (self.path / TABLES[kind]).glob("[a-z]*")
        return sorted(p.name for p in folders if (p / recipe_file(kind)).exists())

    def score_names(self) -> list[str]:
        """The names of all scores, sorted."""
        return self.table_names("score")

    def vectors_names(self) -> list[str]:
        """The names of all vectors, sorted."""
        return self.table_names("vectors")

    @property
    def targets(self) -> Parts:
        """The targets; a part for each."""
        return Parts(self.path / "targets")

    def target_path(self, name: str) -> Location:
        """The Parquet file of a target."""
        return self.targets.path(name)

    def target_rows(self, name: str) -> pa.Table:
        """All samples of a target, with the columns of schema.TARGET. Raises DamagedError if they are others than were
        written."""
        return read_table(self.targets.intact(name), TARGET.names)

    def target_names(self) -> list[str]:
        """The names of all targets, sorted; also of those whose file is gone, which whatever reads it says."""
        return sorted({*(p.stem for p in (self.path / "targets").glob("*.parquet")), *self.targets.names()})

    def manifest_path(self, name: str) -> Location:
        """The Parquet file of a manifest; its JSON has the same stem."""
        return self.path / "manifests" / f"{name}.parquet"

    def manifest_names(self) -> list[str]:
        """The names of all manifests; a manifest exists once its JSON, written last, does."""
        return sorted(p.stem for p in (self.path / "manifests").glob("*.json"))

    def mask_path(self, name: str) -> Location:
        """The safetensors file of a mask."""
        return self.path / "masks" / f"{name}.safetensors"

    def mask_names(self) -> list[str]:
        """The names of all masks, sorted."""
        return sorted(p.stem for p in (self.path / "masks").glob("*.safetensors"))

    def run_folder(self, name: str) -> Location:
        """The folder of a run."""
        return self.path / "runs" / name

    def run_names(self) -> list[str]:
        """The names of all runs; a run exists once its run.json does."""
        return sorted(p.name for p in (self.path / "runs").glob("[a-z]*") if (p / "run.json").exists())

    def trial_folder(self, name: str) -> Location:
        """The folder of a trial."""
        return self.path / "trials" / name

    def trial_names(self) -> list[str]:
        """The names of all trials; a trial exists once its subsets are drawn, and its trial.json is there."""
        return sorted(p.name for p in (self.path / "trials").glob("[a-z]*") if (p / "trial.json").exists())

    def names(self) -> dict[str, str]:
        """Every name in use -> the kind of object it names."""
        return {
            **dict.fromkeys(VIEWS, "a view"),
            **dict.fromkeys(POOL_COLUMNS, "a column of the pool"),
            **dict.fromkeys(self.target_names(), "target"),
            **dict.fromkeys(self.score_names(), "score"),
            **dict.fromkeys(self.vectors_names(), "vectors"),
            **dict.fromkeys(self.manifest_names(), "manifest"),
            **dict.fromkeys(self.mask_names(), "mask"),
            **dict.fromkeys(self.run_names(), "run"),
            **dict.fromkeys(self.trial_names(), "trial"),
        }

    def check_name(self, name: str, kind: str) -> None:
        """Raises CurateError if a name for a new `kind` (score, vectors, manifest, …) is taken or unusable in SQL."""
        if not _NAME.fullmatch(name):
            raise CurateError(
                f"the {kind} name '{name}' must match [a-z][a-z0-9_]* (small letters, digits, underscores); "
                f"'{suggest_name(name)}' would do."
            )
        if name in _sql_words():
            raise CurateError(f"the {kind} name '{name}' is a word of SQL; '{name}_{kind}' would do.")
        existing_kind = self.names().get(name, kind)
        if existing_kind != kind:
            options = {"vectors": " with --vectors", "score": " with --name"}
            raise CurateError(
                f"the {kind} name '{name}' is taken: it is {_a(existing_kind)}; choose another{options.get(kind, '')}."
            )

    def require_pool(self) -> list[Shard]:
        """The shards that have rows. Raises CurateError if the pool is empty."""
        shards = [shard for shard in self.shards() if shard.rows]
        if not shards:
            raise CurateError(f"{self.path}: the pool is empty; add samples with `curate ingest PATH…`.")
        return shards

    def require(self, kind: str, name: str) -> None:
        """Raises CurateError, suggesting the most similar name, if there is no such object of that kind."""
        if name not in (existing := self.having(kind)):
            raise CurateError(f"{self.path} has no {kind} '{name}': {nearest(name, existing)}")

    def having(self, kind: str) -> list[str]:
        """The names of all objects of a kind: score, vectors, target, manifest, mask, run or trial."""
        if kind in TABLES:
            return self.table_names(kind)
        names = {"target": self.target_names, "manifest": self.manifest_names, "mask": self.mask_names}
        return {**names, "run": self.run_names, "trial": self.trial_names}[kind]()

    def n_rows(self) -> int:
        """The number of samples in the pool."""
        return sum(shard.rows for shard in self.shards())


def recipe_file(kind: str) -> str:
    """The name of the file with a table's recipe, without which the table does not exist."""
    return f"{kind}.json"


def _a(kind: str) -> str:
    return kind if kind.startswith("a ") or kind == "vectors" else f"a {kind}"


def suggest_name(text: str) -> str:
    """A valid name similar to `text`."""
    name = re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_")
    return name if _NAME.fullmatch(name) else f"x_{name}".rstrip("_")


def open_workspace(
    path: str | os.PathLike[str],
    create: bool = True,
    *,
    like: Workspace | None = None,
    allow_files: Iterable[str | os.PathLike[str]] = (),
    allow_pickle: bool = False,
    allow_remote_code: bool = False,
    wait: float = 0.0,
) -> Workspace:
    """The workspace at `path`; a missing or empty folder becomes one if `create` is true.

    like: the workspace whose rule for control tokens in texts a new one has.
    allow_files: folders and files outside it that SQL (queries and conditions) may read too. allow_pickle,
    allow_remote_code: whether models that were recorded or planned with these settings may be loaded with them. wait:
    the seconds for which verbs wait for what another process writes, before they raise WorkspaceBusy.

    Raises CurateError if the folder contains something else, or was written by a newer version of curate.
    """
    given = {"allow_pickle": allow_pickle, "allow_remote_code": allow_remote_code}
    trusted = tuple(name for name, allowed in given.items() if allowed)
    return waiting(replace(with_files(_open(path, create, like), allow_files), trusted=trusted), wait)


def waiting(ws: Workspace, wait: float) -> Workspace:
    """The workspace, whose locks are waited for. Raises CurateError for a time that is none."""
    require("--wait", isinstance(wait, int | float) and wait >= 0, "a number of seconds, 0 or more")
    return replace(ws, wait=float(wait))


def with_files(ws: Workspace, allow_files: Iterable[str | os.PathLike[str]]) -> Workspace:
    """The workspace, of which SQL may also read these folders and files. Raises CurateError for one that is missing."""
    paths = [Path(path).expanduser().absolute() for path in allow_files]
    for path in paths:
        if not path.exists():
            raise CurateError(f"--allow-files {path}: there is no such folder or file.")
    return replace(ws, readable=tuple(dict.fromkeys([*ws.readable, *map(str, paths)])))


def _open(path: str | os.PathLike[str], create: bool, like: Workspace | None) -> Workspace:
    folder = location(path)
    if any(sign in str(folder.absolute()) for sign in "*?[]"):
        raise CurateError(f"{folder}: a workspace's path must not hold *, ?, [ or ], which stand for other files.")
    marker = folder / MARKER
    if marker.exists():
        return _opened(folder, read_marker(folder))
    if not create:
        raise CurateError(f"{folder} is no workspace (it has no workspace.json); make one with `curate ingest`.")
    if folder.exists() and not folder.is_dir():
        raise CurateError(f"{folder} is a file, and a workspace is a folder; name another with -w.")
    if folder.exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
        raise CurateError(f"{folder} holds files that are not a workspace's; name an empty or new folder with -w.")
    folder.mkdir(parents=True, exist_ok=True)
    rule = like.special_tokens() if like else "text"
    created = datetime.now(UTC).isoformat()
    write_json(marker, {"format": FORMAT, "created": created, "curate": __version__, "special_tokens": rule})
    return Workspace(folder)


def read_marker(folder: Location) -> dict[str, Any]:
    """What workspace.json says. Raises DamagedError if it cannot be read, or says what curate never wrote."""
    path = folder / MARKER
    try:
        marker = read_json(path)
        known = isinstance(marker, dict) and marker.get("special_tokens", "text") in ("text", "parse")
        if known and (not isinstance(marker.get("format"), int) or marker["format"] > FORMAT or marker.keys() <= _SAID):
            return marker
    except (orjson.JSONDecodeError, FileNotFoundError):
        pass
    raise DamagedError(
        f"{path} is damaged, which says how the workspace is to be read; put a copy of it back (of a workspace made in "
        f'the same way, with the same "format" and "special_tokens").'
    )


def _mend(ws: Workspace) -> None:
    """Finish what killed processes left incomplete: swaps of tables and runs, removals, accounts of the ledger."""
    for kind, folder in TABLES.items():
        for fresh in (ws.path / folder).glob(".*.fresh"):
            name = fresh.name[1 : -len(".fresh")]
            if (fresh / _COMPLETE).exists():
                with contextlib.suppress(CurateError), lock(ws, f"{kind} {name}"):  # refused if its writer lives
                    ws.finish_swap(kind, name)
        sweep_dropped(ws.path / folder)
    for fresh in (ws.path / "runs").glob(".*.fresh"):
        name = fresh.name[1 : -len(".fresh")]
        if (fresh / "run.json").exists() and not (ws.run_folder(name) / "run.json").exists():
            with contextlib.suppress(CurateError), lock(ws, f"run {name}"):  # the old run was renamed already
                replace_tree(fresh, ws.run_folder(name), marker="run.json")
    sweep_dropped(ws.path / "runs")
    sweep_dropped(ws.path / "audits")
    sweep_dropped(ws.path / "tokens")
    close_dead_accounts(ws.path)


def _opened(folder: Location, marker: dict[str, Any]) -> Workspace:
    format_version = marker.get("format") if isinstance(marker, dict) else None
    if not isinstance(format_version, int):
        raise CurateError(f"{folder}/workspace.json names no format version; this is no workspace of curate's.")
    if format_version > FORMAT:
        raise CurateError(
            f"{folder} has workspace format {format_version}, made by curate {marker.get('curate')}; this is curate "
            f"{__version__}, which reads up to format {FORMAT}: upgrade curate."
        )
    ws = Workspace(folder)
    with noted_if_read_only(ws.path):
        _mend(ws)
    return ws
