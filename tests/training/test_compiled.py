"""How attention is computed, and whether the model is compiled: the same training within rounding, or a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from curate.errors import CurateError
from curate.methods.weightings.filter_then_weight import FilterThenWeight
from curate.methods.weightings.uniform import Uniform
from curate.models.choice import ModelChoice
from curate.models.tokens import Encoded
from curate.training.dataset import Data
from curate.training.distributed import Alone
from curate.training.examples import Examples
from curate.training.loop import Trainer
from curate.training.settings import TrainSettings, from_hugging_face
from curate.training.trainable import trainable
from tests.support.narrow import NARROW
from tests.support.training import PLAIN

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own modules, as they are compiled
CHOICE = ModelChoice(NARROW, device="cpu")


def losses(encoded: list[Encoded], settings: TrainSettings) -> tuple[list[float], str]:
    """The loss of every step, and how attention was computed."""
    lm = trainable(CHOICE, settings).model
    trainer = Trainer(lm, Data.of(Examples.of(encoded)), settings, Uniform(), Alone())
    return [done.metrics["loss"] for done in trainer.run()], lm.model.config._attn_implementation


def test_attention_is_computed_as_asked(encoded: list[Encoded]) -> None:
    found = {how: losses(encoded, replace(PLAIN, attn_implementation=how)) for how in ("auto", "eager", "sdpa")}
    assert {how: own for how, (_, own) in found.items()} == {"auto": "sdpa", "eager": "eager", "sdpa": "sdpa"}
    assert found["auto"][0] == found["sdpa"][0] == pytest.approx(found["eager"][0], rel=1e-4)
    lora = trainable(CHOICE, replace(PLAIN, attn_implementation="eager", lora_r=2)).model
    assert lora.model.config._attn_implementation == "eager"


@pytest.mark.slow
@pytest.mark.parametrize("packing", [False, True])
def test_a_traced_model_learns_the_same(encoded: list[Encoded], packing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that would be compiled, run as it is: to compile it takes minutes on a CPU."""
    compiler, graphs = torch.compile, list[Any]()

    def as_it_is(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda body, dynamic: compiler(body, dynamic=dynamic, backend=as_it_is))
    settings = replace(PLAIN, packing=packing, batch_size=4 if packing else 8)
    traced = losses(encoded, replace(settings, compile=True))[0]
    assert graphs and traced == pytest.approx(losses(encoded, settings)[0], rel=1e-4)


@pytest.mark.slow
def test_a_compiled_model_learns_the_same(encoded: list[Encoded]) -> None:
    settings = replace(PLAIN, epochs=2.0)
    compiled = losses(encoded, replace(settings, compile=True))[0]
    assert compiled == pytest.approx(losses(encoded, settings)[0], rel=1e-3)


def test_what_does_not_go_together_is_said(encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch) -> None:
    for more in ({"compile": True}, {"attn_implementation": "sdpa"}):
        with pytest.raises(CurateError, match="count_flops counts eager attention"):
            TrainSettings(count_flops=True, **more)
    with pytest.raises(CurateError, match="needs a GPU and the package flash-attn"):
        trainable(CHOICE, replace(PLAIN, attn_implementation="flash_attention_2"))
    compiled, data = replace(PLAIN, compile=True), Data.of(Examples.of(encoded), anchors=Examples.of(encoded[:4]))
    lm = trainable(CHOICE, compiled).model
    with pytest.raises(CurateError, match="are not compiled; leave out compile"):
        Trainer(lm, data, compiled, FilterThenWeight(), Alone())
    monkeypatch.setattr(lm, "plain_head", False)
    with pytest.raises(CurateError, match="scales or caps its logits"):
        Trainer(lm, data, compiled, Uniform(), Alone())
    asked: dict[str, Any] = {"torch_compile": "true"}
    assert from_hugging_face(asked) == {"compile": "true"}
