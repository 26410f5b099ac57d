"""What model.dtype=auto is: by the processor's rates, by the score, and by the table that there is."""

from __future__ import annotations

import pytest

import curate
from curate.errors import CurateError
from curate.models import rates
from curate.models.choice import ModelChoice
from curate.models.rates import VARIABLE, Rates, processor_rates, with_fast_products
from curate.store.workspace import Workspace
from curate.tables.inputs import score_recipe, table_recipe
from tests.support.narrow import NARROW

FAST, SLOW = Rates(1e11, 4e11), Rates(1e11, 0.9e11)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A processor that is four times as fast in bfloat16."""
    monkeypatch.delenv(VARIABLE, raising=False)
    _is(monkeypatch, FAST)
    return monkeypatch


def _is(patch: pytest.MonkeyPatch, found: Rates) -> None:
    patch.setattr(rates, "processor_rates", lambda: found)
    patch.setattr("curate.tables.engine.measured", lambda: found)
    patch.setattr("curate.tables.meters.measured", lambda: found)


def test_the_rates_of_this_processor() -> None:
    found = processor_rates()
    assert found.float32 > 1e8 and found.bfloat16 >= 0 and found.gain == found.bfloat16 / found.float32
    assert processor_rates() is found  # measured once
    assert rates.measured() is found


@pytest.mark.parametrize("found", [FAST, SLOW, Rates(1e11, 1.1e11), Rates(1e11, 0.0)])
def test_auto_takes_what_is_clearly_faster(found: Rates, machine: pytest.MonkeyPatch) -> None:
    _is(machine, found)
    wanted = "mixed_bfloat16" if found is FAST else "auto"
    assert with_fast_products(ModelChoice("m", device="cpu")).dtype == wanted
    for choice in (
        ModelChoice("m", dtype="float32"),
        ModelChoice("m", dtype="float16"),
        ModelChoice("m", device="cuda"),
    ):
        assert with_fast_products(choice) == choice
    machine.setattr(rates, "has_gpu", lambda: True)
    assert with_fast_products(ModelChoice("m")).dtype == "auto"


def test_the_environment_says_it_for_all_machines(machine: pytest.MonkeyPatch) -> None:
    choice = ModelChoice("m", device="cpu")
    machine.setenv(VARIABLE, "float32")
    assert with_fast_products(choice).dtype == "auto"
    _is(machine, SLOW)
    machine.setenv(VARIABLE, "mixed_bfloat16")
    assert with_fast_products(choice).dtype == "mixed_bfloat16"
    machine.setenv(VARIABLE, "bf16")
    with pytest.raises(CurateError, match="CURATE_CPU_DTYPE is float32, mixed_bfloat16 or not set, not 'bf16'"):
        with_fast_products(choice)


def test_only_scores_whose_order_it_keeps(handful_ws: Workspace, machine: pytest.MonkeyPatch) -> None:
    model, exact = ModelChoice(NARROW), ModelChoice(NARROW, dtype="float32")
    nll, rho = curate.score(handful_ws, "nll", "rho", models={"base": model, "reference": model})
    assert nll.products == "products in bfloat16, 4.0 times as fast here as in float32" and not rho.products
    curate.score(handful_ws, "nll", models=exact, names={"nll": "exact"})
    dtypes = {name: score_recipe(handful_ws, name).models["base"].dtype for name in ("nll", "rho", "exact")}
    assert dtypes == {"nll": "mixed_bfloat16", "rho": "auto", "exact": "float32"}
    (row,) = curate.sql(handful_ws, "SELECT * FROM ledger WHERE name = 'nll'")
    assert (row["float32_rate"], row["bfloat16_rate"]) == (1e11, 4e11)
    (row,) = curate.sql(handful_ws, "SELECT max(abs(nll - exact)) AS most FROM samples")
    assert row["most"] > 0


def test_a_table_goes_on_as_it_began(handful_ws: Workspace, machine: pytest.MonkeyPatch) -> None:
    def score(**more: bool) -> None:
        curate.score(handful_ws, "nll", "embed_lm", models=ModelChoice(NARROW), target="facts", **more)

    def dtypes() -> list[str]:
        vectors = table_recipe(handful_ws, "vectors", "embed_lm")
        recipes = (score_recipe(handful_ws, "nll"), vectors, score_recipe(handful_ws, "embed_lm_facts"))
        return [recipe.models["base"].dtype for recipe in recipes]

    score()
    assert dtypes() == ["mixed_bfloat16"] * 3
    _is(machine, SLOW)
    more = {"messages": [{"role": "user", "content": "3 + 4"}, {"role": "assistant", "content": "7"}]}
    curate.ingest(handful_ws, [more])
    score()  # on another machine
    assert dtypes() == ["mixed_bfloat16"] * 3
    (row,) = curate.sql(handful_ws, "SELECT count(*) AS n, count(nll) AS m, count(embed_lm_facts) AS k FROM samples")
    assert row["n"] == row["m"] == row["k"]
    score(fresh=True)  # vectors that are unchanged are used again, by a score that says so
    assert dtypes() == ["auto", "mixed_bfloat16", "mixed_bfloat16"]
    _is(machine, FAST)
    score()
    assert dtypes() == ["auto", "mixed_bfloat16", "mixed_bfloat16"]
