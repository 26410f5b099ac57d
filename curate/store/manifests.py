"""A manifest: the samples that a selection chose, or the domains to draw from and how often; and a JSON file that
records how it was made, from which it can be replayed."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.store.encoding import digest, read_recipe, read_table, write_json, write_table
from curate.store.files import remove_leftovers
from curate.store.schema import MANIFEST, MIXTURE
from curate.store.workspace import Workspace


def write_manifest(ws: Workspace, name: str, table: pa.Table, lineage: dict[str, Any]) -> None:
    """Write the rows, then the JSON with their SHA-256; an older manifest of the same name is replaced."""
    path = ws.manifest_path(name)
    remove_leftovers(path.parent)
    sha256 = write_table(path, table.cast(schema_of(lineage)))
    write_json(path.with_suffix(".json"), {**lineage, "sha256": sha256})


def schema_of(lineage: dict[str, Any]) -> pa.Schema:
    """The schema of a manifest's table: of samples, or of domains."""
    return MIXTURE if is_mixture(lineage) else MANIFEST


def is_mixture(lineage: dict[str, Any]) -> bool:
    """Whether a manifest is a mixture, which lists domains and their rates instead of samples."""
    return "mixer" in lineage


def stamp_of(lineage: dict[str, Any]) -> str:
    """A fingerprint of all that a training uses of a manifest. The table of a mixture does not suffice: its samples and
    its shares are recorded in its JSON."""
    if not is_mixture(lineage):
        return lineage["sha256"]
    its = [lineage[key] for key in ("sha256", "exact", "share", "domain", "manifest", "pool")]
    return fingerprint(its, {name: score["fingerprint"] for name, score in lineage["scores"].items()})


def read_manifest(ws: Workspace, name: str) -> tuple[pa.Table, dict[str, Any]]:
    """The samples by rank, and the lineage. Raises CurateError if there is no such manifest, or it is a mixture."""
    table, lineage = read_any(ws, name)
    if is_mixture(lineage):
        raise CurateError(
            f"the manifest '{name}' is a mixture of domains, from which samples are drawn; it is for `curate train` "
            "and `curate export`. Name a manifest of samples here."
        )
    return table, lineage


def read_any(ws: Workspace, name: str) -> tuple[pa.Table, dict[str, Any]]:
    """The table of a manifest, of samples or of domains, and the lineage. Raises CurateError if there is none."""
    ws.require("manifest", name)
    path = ws.manifest_path(name)
    lineage = read_recipe(path.with_suffix(".json"))
    if not path.exists() or digest(path.read_bytes()) != lineage["sha256"]:
        raise CurateError(
            f"{path} is not what its JSON vouches for (a select was killed, or it was edited): select again."
        )
    return read_table(path), lineage
