"""How far a score's prediction holds: what a step as long as a training really does to the target's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from curate.runs.scored_model import scored_model
from curate.store.ledger import charged
from curate.store.workspace import Workspace
from curate.tables.inputs import load_target

if TYPE_CHECKING:
    from curate.training.reach import Reach


def reach_of(ws: Workspace, name: str) -> Reach:
    """Of a stored score that predicts a step: the decrease of the target's loss over the predicted one, along AdamW's
    first step on the sum of the pool's gradients, which moves every parameter by the learning rate; so a displacement
    is a learning rate times steps that all agree. Charged to the ledger as phase `reach`."""
    import torch

    from curate.models.flops import forward_flops
    from curate.models.tokens import encode
    from curate.training.reach import DISPLACEMENTS, reach
    from curate.training.realised import Validation

    opened = scored_model(ws, name, allow_stale=True)
    lm, target = opened.model.lm, opened.recipe.target
    assert target
    samples = load_target(ws, target).text.frame.select("messages", "text").to_dicts()
    encoded = encode(lm.tokenizer, samples, lm.context)
    device = lm.device

    def of(key: str) -> dict[str, torch.Tensor]:
        return {
            parameter: torch.from_numpy(np.asarray(opened.states[f"{key}.0/{parameter}"][0], np.float32)).to(device)
            for parameter in opened.model.parameters
        }

    direction = {parameter: value.sign() for parameter, value in of("pool").items()}
    models = ", ".join(dict.fromkeys(model.name for model in opened.recipe.models.values()))
    with charged(ws.path, "score", methods=[opened.recipe.method], name=name, model=models, phase="reach") as meter:
        meter.begin((len(DISPLACEMENTS) + 1) * len(encoded))
        found = reach(Validation(opened.model, encoded), of("task"), direction)
        usage, times = lm.usage(), len(DISPLACEMENTS) + 1
        usage.tokens = usage.padded_tokens = times * sum(len(one.ids) for one in encoded)
        usage.flops = times * sum(
            forward_flops(lm.model, 1, len(one.ids), int(one.supervised[1:].sum())) for one in encoded
        )
        meter.add(usage)
    return found


def in_words(found: Reach) -> str:
    """A sentence: up to which displacement the target's loss falls by at least half of what is predicted."""
    known = [(d, float(r)) for d, r in zip(found.displacements, found.ratio, strict=True) if not np.isnan(r)]
    if not known:
        return "the pool's gradients foretell nothing of the target's loss that could be measured"
    far = found.within(0.5, 1.5)
    if not far:
        return (
            f"even a learning rate times steps of {known[0][0]:g} of AdamW takes {known[0][1]:.2g} times as much off "
            "the target's loss as its gradient predicts: these values foretell no training from here"
        )
    beyond = next((pair for pair in known if pair[0] > far), None)
    told = f"; at {beyond[0]:g} it loses {beyond[1]:.2g} times as much" if beyond else ""
    return (
        "along AdamW's first step on the whole pool the target's loss falls as predicted, within a half, up to a "
        f"learning rate times steps of {far:g}{told}"
    )
