"""The checks of `curate verify` on what commands made: runs, trials, warm-ups, manifests, masks, and their list."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from curate.errors import CurateError, DamagedError
from curate.runs.recipe_words import trial_command
from curate.store import contents
from curate.store.commits import LIST, Parts
from curate.store.encoding import size
from curate.store.files import remove_tree
from curate.store.integrity import Damage, Seen, list_damage, looked_at, restored, wrong, wrong_file
from curate.store.ledger_files import folder_of, names_of, read_entries, relist
from curate.store.locks import lock
from curate.store.manifests import kept_path, manifest_recipe
from curate.store.mask_file import read_mask
from curate.store.object_store import Location
from curate.store.recipes import ManifestRecipe, MixtureRecipe, read_manifest_recipe
from curate.store.run_record import Run
from curate.store.token_files import all_token_files
from curate.store.workspace import Workspace
from curate.tables.dependents import kept_leftovers
from curate.tables.trials import StoredTrial


def check_contents(ws: Workspace, repair: bool) -> Seen:
    """What was made and is gone: a manifest, a mask, a recipe or a run."""
    try:
        yield sum(map(len, contents.entered(ws).values()))
        for lost in contents.lost(ws):
            remedy = f"put a copy of its file back, or make it again; `curate drop {lost.name} --force` forgets it"
            yield Damage(lost.kind, lost.name, contents.marker_of(ws, lost.kind, lost.name).name, lost.what, remedy)
    except DamagedError:
        if repair:
            contents.rebuild(ws)
        remedy = "--repair makes it again from what is there"
        yield Damage("contents", contents.CONTENTS, contents.CONTENTS, "cannot be read", remedy, repair)


# --- runs ------------------------------------------------------------------------------------------------


def check_run(ws: Workspace, name: str, repair: bool) -> Seen:
    """The recipe of a run, its metrics, evaluations, and every file of its checkpoints."""
    run, again = Run(ws, name), f"put a copy of it back, or train the run again (`curate train {name} … --fresh`)"
    try:
        run.require_recipe()
        yield len((run.folder / "run.json").read_bytes())
    except CurateError:
        yield Damage("run", name, "run.json", "cannot be read", again)
    for kind in ("metrics", "trained"):
        yield from _parts_of(ws, run, kind, again, repair)
    evaluate = f"--repair removes it, and `curate evaluate {name}` makes it again"
    yield from _parts_of(ws, run, "evaluations", evaluate, repair, computable=True)
    yield from _checkpoints(ws, run, again, repair)


def _parts_of(ws: Workspace, run: Run, kind: str, remedy: str, repair: bool, computable: bool = False) -> Seen:
    parts, what = Parts(run.folder / kind), f"run {run.name}"
    yield from list_damage(parts, "run", run.name, ws, what, repair)
    for part in looked_at(parts):
        damage = Damage("run", run.name, f"{kind}/{part.name}", part.problem, remedy)
        if part.restorable:
            yield restored(parts, part, damage, ws, what, repair)
        elif part.problem and not part.left_over:
            if computable and repair:
                with lock(ws, what):
                    parts.remove(part.name)
            yield Damage(damage.kind, damage.name, damage.part, damage.what, remedy, computable and repair)
        elif not part.problem:
            yield len(part.data)


def _checkpoints(ws: Workspace, run: Run, again: str, repair: bool) -> Seen:
    parts, what = Parts(run.folder / "checkpoints"), f"run {run.name}"
    yield from list_damage(parts, "run", run.name, ws, what, repair)
    try:
        listed = parts.listed()
    except DamagedError:
        listed = {}
    for name in sorted({*parts.names(), *listed}):
        record, folder = listed.get(name) or parts.record(name), parts.folder / name
        if record is None or name in listed and parts.record(name) != record:
            damage = Damage("run", run.name, f"checkpoints/{name}", "has no commit record that can be read", again)
            if record is not None and repair:
                with lock(ws, what):
                    parts.restore(name)
            yield Damage(damage.kind, damage.name, damage.part, damage.what, again, record is not None and repair)
        remedy = f"remove {folder}, and the same `curate train` goes on from the checkpoint before, or begins again"
        yield from checkpoint_files(record or {"files": {}}, folder, "run", run.name, f"checkpoints/{name}", remedy)


def checkpoint_files(
    record: dict[str, dict[str, str]], folder: Location, kind: str, name: str, part: str, remedy: str
) -> Seen:
    """The files of a checkpoint against their digests in its record."""
    for file, sha256 in record["files"].items():
        problem, data = wrong_file(folder / file, sha256)
        yield Damage(kind, name, f"{part}/{file}", problem, remedy) if problem else len(data)


def check_trial(ws: Workspace, name: str, repair: bool) -> Seen:
    """The recipe of a trial, its subsets, what its trainings gave, and what they left. What can be trained again is
    removed by a repair, and the same command trains on those subsets again."""
    stored, other = StoredTrial(ws, name), "put a copy of it back, or make the trial under another name"
    try:
        command = f"`{trial_command(stored.require_recipe(), name)}`"
        yield len((stored.folder / "trial.json").read_bytes())
    except CurateError:
        command = "the same `curate trial`"
        yield Damage("trial", name, "trial.json", "cannot be read, or is not as it was written", other)
    yield from _of_trial(stored, stored.drawn, other, False)
    again = f"--repair removes it, and {command} trains on that subset again"
    yield from _of_trial(stored, stored.losses, again, repair)
    yield from _of_trial(stored, stored.checkpoints, again, repair)
    asked_again = "--repair removes it, and the same `curate foretell` trains it again"
    yield from _of_trial(stored, stored.counterfactuals, asked_again, repair)


def _of_trial(stored: StoredTrial, parts: Parts, remedy: str, repair: bool) -> Seen:
    what, folder = f"trial {stored.name}", parts.folder.name
    yield from list_damage(parts, "trial", stored.name, stored.ws, what, repair)
    for part in looked_at(parts):
        damage = Damage("trial", stored.name, f"{folder}/{part.name}", part.problem, remedy)
        if part.restorable:
            yield restored(parts, part, damage, stored.ws, what, repair)
        elif part.problem and not part.left_over:
            removable = repair and folder != "drawn"
            if removable:
                with lock(stored.ws, what):
                    parts.remove(part.name)
                    if folder == "checkpoints":  # a training is done again if its losses are gone
                        stored.losses.remove(part.name)
            yield replace(damage, repaired=removable)
        elif not part.problem:
            yield len(part.data)


def check_warm_up(ws: Workspace, folder: Location, repair: bool) -> Seen:
    """The checkpoints of a warm-up; if something is damaged, all are removed, to be retrained to the same bytes."""
    run, remedy = Run(ws, folder.name, place=folder), "--repair removes the warm-up, which is trained again"
    damaged: list[Damage] = []
    try:
        run.require_recipe()
        found = list(_checkpoints(ws, run, remedy, False))
        for kind in ("metrics", "trained"):
            found += _parts_of(ws, run, kind, remedy, False)
    except CurateError as error:
        found = [Damage("prepared", folder.name, "run.json", str(error).rstrip("."), remedy)]
    for item in found:
        if isinstance(item, Damage):
            damaged.append(Damage("prepared", folder.name, item.part, item.what, remedy, repair))
        else:
            yield item
    if damaged and repair:
        with lock(ws, f"prepared {folder.name}"):
            remove_tree(folder, marker="run.json")
    yield from damaged


def check_tokens(ws: Workspace, repair: bool, leftovers: list[str]) -> Seen:
    """The tokens kept for trainings; what is damaged or another's is removed, to be made again by the next training
    that asks for it. leftovers: to which files are added that a killed training left."""
    remedy = "--repair removes it, and the next training makes it again"
    for files in all_token_files(ws):
        damaged = []
        for part in looked_at(files.parts):
            if part.record is None and not files.parts.record_path(part.name).exists():
                leftovers.append(str(files.parts.path(part.name)))
            elif problem := part.problem or files.of_another(part.name, part.record or {}):
                damaged.append(Damage("tokens", files.fingerprint, part.name, problem, remedy, repair))
            else:
                yield len(part.data)
        if damaged and repair:
            with lock(ws, files.lock_name):
                for damage in damaged:
                    files.parts.remove(damage.part)
        yield from damaged


# --- manifests, masks, and tables without records --------------------------------------------------------


def check_manifest(ws: Workspace, name: str) -> Seen:
    """A manifest's recipe, and its table against the recipe."""
    path = ws.manifest_path(name)
    try:
        recipe = manifest_recipe(ws, name)
    except CurateError:
        remedy = "put a copy of it back, or make the manifest again with --fresh"
        yield Damage("manifest", name, f"{name}.json", "cannot be read", remedy)
        return
    command = (
        f"mix {name} …" if isinstance(recipe, MixtureRecipe) else f"select {name} --replay {path.with_suffix('.json')}"
    )
    yield from _table_of(path, recipe, name, name, f"`curate {command}` makes it again")


def check_kept_manifests(ws: Workspace) -> Seen:
    """The manifests that were replaced and are kept for runs."""
    folder = kept_path(ws, "").parent
    for path in sorted(folder.glob("*.parquet")):
        if not path.with_suffix(".json").exists() and path.stem in _trained_on(ws) and path not in kept_leftovers(ws):
            remedy = "restore it from a copy; runs only name it"
            yield Damage("manifest", path.stem, f"replaced/{path.stem}", "has lost its recipe", remedy)
    for path in sorted(folder.glob("*.json")):
        part, remedy = f"replaced/{path.stem}", "restore it from a copy; runs only name it"
        try:
            recipe = read_manifest_recipe(path)
        except CurateError:
            yield Damage("manifest", path.stem, part, "has a recipe that cannot be read", remedy)
        else:
            yield from _table_of(path.with_suffix(".parquet"), recipe, recipe.name, part, remedy)


def _trained_on(ws: Workspace) -> set[str]:
    """The stamps of the manifests that runs were trained on, of runs that can be read."""
    stamps = set()
    for name in ws.run_names():
        with suppress(CurateError):
            stamps.add(str(Run(ws, name).require_recipe().manifest_sha256))
    return stamps


def _table_of(path: Location, recipe: ManifestRecipe, name: str, part: str, remedy: str) -> Seen:
    if not path.exists():
        yield Damage("manifest", name, part, "is not there, but its JSON is", remedy)
        return
    data = path.read_bytes()
    problem = wrong(data, recipe.sha256)
    yield Damage("manifest", name, part, problem, remedy) if problem else len(data)


def check_mask(ws: Workspace, name: str) -> Seen:
    """A mask: whether it can be read, and has indices that its parameters have."""
    try:
        read_mask(ws, name)
    except CurateError:
        yield Damage("mask", name, name, "is not a whole mask", "`curate mask` makes it again")
    else:
        yield len(ws.mask_path(name).read_bytes())


def check_ledger(ws: Workspace, repair: bool) -> Seen:
    """The files of the ledger, and their list; a repair sets aside what cannot be read, and lists what can."""
    lost = read_entries(ws.path).lost
    for name in names_of(folder_of(ws.path)):
        if name not in lost:
            yield size(folder_of(ws.path) / f"{name}.parquet")
    costs = "what it says of costs is lost; put a copy of it back, or --repair goes on without it (in ledger/set-aside)"
    if lost and repair:
        relist(ws.path, [name for name in lost if name != LIST])
    for name, problem in lost.items():
        part, remedy = (name, "--repair makes it again") if name == LIST else (f"{name}.parquet", costs)
        yield Damage("ledger", "ledger", part, problem, remedy, repair)
