"""A manifest: the samples that a selection chose, or the domains to draw from and how often; and a JSON file that
records how it was made, from which it can be replayed."""

from __future__ import annotations

import pyarrow as pa
from msgspec.structs import replace

from curate.errors import CurateError
from curate.hashing import fingerprint
from curate.store.encoding import digest, read_table, write_table
from curate.store.files import remove_leftovers
from curate.store.recipes import ManifestRecipe, MixtureRecipe, SamplesRecipe, read_manifest_recipe, write_recipe
from curate.store.schema import MANIFEST, MIXTURE
from curate.store.workspace import Workspace


def write_manifest(ws: Workspace, name: str, table: pa.Table, recipe: ManifestRecipe) -> None:
    """Write the rows, then the JSON with their SHA-256; an older manifest of the same name is replaced."""
    path = ws.manifest_path(name)
    remove_leftovers(path.parent)
    sha256 = write_table(path, table.cast(schema_of(recipe)))
    write_recipe(path.with_suffix(".json"), replace(recipe, sha256=sha256))


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
    return read_manifest_recipe(ws.manifest_path(name).with_suffix(".json"))


def read_any(ws: Workspace, name: str) -> tuple[pa.Table, ManifestRecipe]:
    """The table of a manifest, of samples or of domains, and the recipe. Raises CurateError if there is none."""
    ws.require("manifest", name)
    path = ws.manifest_path(name)
    recipe = manifest_recipe(ws, name)
    if not path.exists() or digest(path.read_bytes()) != recipe.sha256:
        raise CurateError(
            f"{path} is not what its JSON vouches for (a select was killed, or it was edited): select again."
        )
    return read_table(path), recipe
