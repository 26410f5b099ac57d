"""A manifest: the samples that a selection chose, or the domains to draw from and how often; and a JSON file that
records how it was made, from which it can be replayed."""

from __future__ import annotations

import pyarrow as pa
from msgspec.structs import replace

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.store.contents import enter, require_intact, take_out
from curate.store.encoding import digest, parquet, read_table, write_table
from curate.store.files import remove_leftovers, write_atomic
from curate.store.object_store import Location
from curate.store.recipes import ManifestRecipe, MixtureRecipe, SamplesRecipe, read_manifest_recipe, write_recipe
from curate.store.schema import MANIFEST, MIXTURE
from curate.store.workspace import Workspace


def write_manifest(ws: Workspace, name: str, table: pa.Table, recipe: ManifestRecipe) -> None:
    """Write the rows, then the JSON with their SHA-256; an older manifest of the same name is replaced."""
    path = ws.manifest_path(name)
    remove_leftovers(path.parent)
    take_out(ws, "manifest", name)
    sha256 = write_table(path, table.cast(schema_of(recipe)))
    write_recipe(path.with_suffix(".json"), replace(recipe, sha256=sha256))
    enter(ws, "manifest", name)


def stamped(table: pa.Table, recipe: ManifestRecipe) -> ManifestRecipe:
    """The recipe with the SHA-256 that the table would be written with."""
    return replace(recipe, sha256=digest(parquet(table.cast(schema_of(recipe)))))


def keep_manifest(ws: Workspace, name: str) -> bool:
    """Copy a manifest to manifests/replaced/STAMP.parquet and .json, before it is replaced or removed, for the runs
    that were trained on it; returns whether it is kept. STAMP: see `stamp_of`; runs record it as manifest_sha256.

    A table that is not the recipe's is not copied: of a replacement that was killed it is the new one, and the old one
    is kept already. Nor is what has a damaged recipe, of which no run could be sure."""
    path = ws.manifest_path(name)
    try:
        recipe = manifest_recipe(ws, name)
    except CurateError:
        return False
    kept = kept_path(ws, stamp_of(recipe))
    if path.exists() and digest(data := path.read_bytes()) == recipe.sha256:
        write_atomic(kept, data)
        write_recipe(kept.with_suffix(".json"), recipe)
    return kept.exists()


def kept_manifests(ws: Workspace) -> dict[str, ManifestRecipe]:
    """Stamp -> recipe of the manifests that were replaced or removed and are kept."""
    files = sorted(kept_path(ws, "").parent.glob("*.json"))
    return {file.stem: read_manifest_recipe(file) for file in files}


def remove_kept(ws: Workspace, stamp: str) -> None:
    """Remove a kept manifest."""
    kept_path(ws, stamp).with_suffix(".json").unlink(missing_ok=True)
    kept_path(ws, stamp).unlink(missing_ok=True)


def kept_path(ws: Workspace, stamp: str) -> Location:
    """The table of a kept manifest; its JSON has the same stem."""
    return ws.path / "manifests" / "replaced" / f"{stamp}.parquet"


def schema_of(recipe: ManifestRecipe) -> pa.Schema:
    """The schema of a manifest's table: of samples, or of domains and their rates."""
    return MIXTURE if isinstance(recipe, MixtureRecipe) else MANIFEST


def stamp_of(recipe: ManifestRecipe) -> str:
    """A fingerprint of all that a training uses of a manifest. The table of a mixture does not suffice: its samples and
    its shares are recorded in its JSON."""
    if not isinstance(recipe, MixtureRecipe):
        return recipe.sha256
    stored = recipe.as_json()
    shaping = [stored[key] for key in ("sha256", "exact", "share", "domain", "manifest", "pool")]
    return fingerprint(shaping, {name: score.fingerprint for name, score in recipe.scores.items()})


def read_manifest(ws: Workspace, name: str) -> tuple[pa.Table, SamplesRecipe]:
    """The samples by rank, and the recipe. Raises CurateError if there is no such manifest, or it is a mixture."""
    table, recipe = read_any(ws, name)
    if isinstance(recipe, MixtureRecipe):
        raise CurateError(
            f"the manifest '{name}' is a mixture of domains, from which samples are drawn; it is for `curate train` "
            "and `curate export`. Name a manifest of samples here."
        )
    return table, recipe


def manifest_recipe(ws: Workspace, name: str) -> ManifestRecipe:
    """How a manifest was made, read without its table."""
    require_intact(ws, "manifest", name)
    return read_manifest_recipe(ws.manifest_path(name).with_suffix(".json"))


def read_any(ws: Workspace, name: str) -> tuple[pa.Table, ManifestRecipe]:
    """The table of a manifest, of samples or of domains, and the recipe. Raises CurateError if there is none, or it is
    not what was written."""
    path, recipe = intact_manifest(ws, name)
    return read_table(path), recipe


def intact_manifest(ws: Workspace, name: str) -> tuple[Location, ManifestRecipe]:
    """The file of a manifest, whose bytes are those that its recipe vouches for, and the recipe. Raises CurateError."""
    ws.require("manifest", name)
    path = ws.manifest_path(name)
    recipe = manifest_recipe(ws, name)
    if not path.exists() or digest(path.read_bytes()) != recipe.sha256:
        raise CurateError(
            f"{path} is not what its JSON vouches for (a select was killed, or it was edited): select again."
        )
    return path, recipe
