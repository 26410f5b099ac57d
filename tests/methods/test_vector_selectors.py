"""The selectors on vectors: each against a slow look at every pair."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from curate.errors import CurateError
from curate.kinds.selector import Budget, Candidates, Selector
from curate.methods.selectors import _logdet as logdet
from curate.methods.selectors import facility, kcenter, round_robin
from curate.methods.selectors.facility import Facility
from curate.methods.selectors.fishersft import Fishersft
from curate.methods.selectors.kcenter import Kcenter
from curate.methods.selectors.kmeans_quota import KmeansQuota
from curate.methods.selectors.round_robin import RoundRobin
from curate.methods.selectors.semdedup import Semdedup
from curate.methods.selectors.spice import Spice
from curate.numerics.apportion import apportion
from curate.numerics.faiss_index import clusters
from curate.numerics.triangles import packed, side, unpacked
from tests.oracles import selectors as slow
from tests.support.candidates import pool, unit

EVERY: list[type[Selector]] = [Kcenter, RoundRobin, Semdedup, Facility, KmeansQuota, Spice, Fishersft]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("held", [1, 7, 4096])
def test_kcenter_takes_the_farthest_first(seed: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kcenter, "_POOL", held)  # how many are kept up to date changes nothing
    monkeypatch.setattr(kcenter, "_CENTRES", 3)
    given = pool(seed=seed)
    for start in ("central", "random", "value"):
        chosen = Kcenter(start=start).select(given, Budget("rows", 30), seed).tolist()
        assert chosen == slow.farthest_first(unit(given), chosen[0], 30)
    assert Kcenter(start="value").select(given, Budget("rows", 1), 0)[0] == given.require_values("").argmax()
    mean = unit(given).mean(0)
    assert Kcenter().select(given, Budget("rows", 1), 0)[0] == (unit(given) @ mean).argmax()


def test_kcenter_takes_all_that_stands_there_twice_last() -> None:
    given = pool(60, repeats=20)
    chosen = Kcenter().select(given, Budget("rows", 60), 0)
    twins = {i: 40 + i for i in range(20)}
    late = set(chosen[40:].tolist())
    assert all((i in late) != (j in late) for i, j in twins.items()) and sorted(chosen.tolist()) == list(range(60))


def test_kcenters_radius_is_at_most_twice_the_best() -> None:
    from itertools import combinations

    given = pool(12, 3, seed=4)
    euclid = np.sqrt(np.maximum(2 - 2 * unit(given) @ unit(given).T, 0))
    best = min(euclid[:, list(some)].min(1).max() for some in combinations(range(12), 3))
    chosen = Kcenter().select(given, Budget("rows", 3), 0)
    assert euclid[:, chosen].min(1).max() <= 2 * best


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("held", [1, 100, 1 << 26])
def test_round_robin_takes_turns(seed: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(round_robin, "_HELD", held)
    given = pool(70, seed=seed)
    assert given.target is not None
    aim = given.target.unit.astype(np.float64)
    for k in (1, 10, 70):
        chosen = RoundRobin().select(given, Budget("rows", k), 0).tolist()
        assert chosen == slow.turns(unit(given), [v[None] for v in aim], k)
        by_task = RoundRobin(lists="subtask").select(given, Budget("rows", k), 0).tolist()
        assert by_task == slow.turns(unit(given), [aim[i::3] for i in range(3)], k)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lam", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("at_once", [1, 64])
def test_spice_takes_the_most_volume_less_the_conflict(
    seed: int, lam: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logdet, "_AT_ONCE", at_once)  # how lazy it is changes nothing
    given = pool(seed=seed)
    assert given.vectors is not None
    raw = given.vectors.raw(np.arange(80))
    wanted, _ = slow.volume(raw, 25, 0.7, lam)
    assert Spice(alpha=0.7, lam=lam).select(given, Budget("rows", 25), 0).tolist() == wanted
    alone, _ = slow.volume(unit(given), 25, 0.7, lam)
    assert Spice(alpha=0.7, lam=lam, lengths="unit").select(given, Budget("rows", 25), 0).tolist() == alone


def test_gains_are_differences_of_log_determinants_and_a_copy_gains_less() -> None:
    given = pool(40, repeats=10, seed=2)
    assert given.vectors is not None
    vectors = given.vectors
    raw = vectors.raw(np.arange(40))
    chosen, gains = slow.volume(raw, 12, 2.0, 0.0)
    volume = logdet.Volume(vectors.raw, 40, 2.0)
    for place, gain in zip(chosen, gains, strict=True):
        assert float(volume.gains(np.array([place]))[0]) == pytest.approx(gain, abs=1e-9)
        volume.add(place)
    fresh = logdet.Volume(vectors.raw, 40, 2.0)
    before = fresh.gains(np.array([0, 30]))
    fresh.add(0)
    after = float(fresh.gains(np.array([30]))[0])
    assert before[0] == pytest.approx(before[1]) and 0 < after < before[1]


def test_the_penalty_tells_a_gradient_from_its_opposite_and_the_gain_does_not() -> None:
    g = np.array([[3.0, 0.1], [-1.0, 0.5], [1.0, -0.5], [1.0, 0.5]])
    given = Candidates.of(vectors=g)
    assert given.vectors is not None
    volume = logdet.Volume(given.vectors.raw, 4, 1.0)
    volume.add(0)
    one, other = volume.gains(np.array([1, 2]))
    assert one == pytest.approx(other)
    assert Spice(lam=0.0).select(given, Budget("rows", 2), 0).tolist() == [0, 1]
    assert Spice(lam=0.5).select(given, Budget("rows", 2), 0).tolist() == [0, 2]


def test_spice_s_diagonal_is_the_published_code_s() -> None:
    given = pool(30, seed=7)
    assert given.vectors is not None
    raw, den = given.vectors.raw(np.arange(30)), np.ones(6)
    wanted: list[int] = []
    while len(wanted) < 12:
        gains = {i: np.log1p(0.5 * float((raw[i] ** 2 / den).sum())) for i in range(30) if i not in wanted}
        wanted.append(max(gains, key=lambda i: (gains[i], -i)))
        den += 0.5 * (np.abs(raw[wanted[-1]]) * raw[wanted[-1]]) ** 2
    assert Spice(alpha=0.5, lam=0.0, form="diagonal").select(given, Budget("rows", 12), 0).tolist() == wanted


def test_spice_ends_where_a_choice_gains_too_little() -> None:
    given = pool(60, seed=1)
    assert given.vectors is not None
    _, gains = slow.volume(given.vectors.raw(np.arange(60)), 40, 1.0, 0.0)
    cut = next(i for i, gain in enumerate(gains) if gain <= 0.2 * gains[0])
    chosen = Spice(lam=0.0, threshold=0.2).select(given, Budget("rows", 40), 0)
    assert 0 < len(chosen) == cut < 40


@pytest.mark.parametrize("sigma0", [0.3, 1.0, 5.0])
def test_fishersft_is_the_d_optimal_design(sigma0: float) -> None:
    given = pool(50, seed=5, repeats=10)
    assert given.vectors is not None
    wanted, _ = slow.volume(given.vectors.raw(np.arange(50)), 20, 1 / sigma0**2, 0.0)
    assert Fishersft(sigma0=sigma0).select(given, Budget("rows", 20), 0).tolist() == wanted
    with pytest.raises(CurateError, match="sigma0=0 of fishersft"):
        Fishersft(sigma0=0.0)
    with pytest.raises(CurateError, match="spice needs alpha above 0"):
        Spice(alpha=0.0)


@pytest.mark.parametrize("sigma0", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("at_once", [1, 64])
def test_fishersft_over_tokens_is_the_design_of_all_tokens(
    sigma0: float, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples of 1 to 9 tokens in 5 dimensions, some twice; a factor of each one's second moment stands for it."""
    monkeypatch.setattr(logdet, "_AT_ONCE", at_once)
    monkeypatch.setattr(logdet, "_NUMBERS", 70)  # of three matrices
    rng = np.random.default_rng(3)
    tokens = [rng.normal(size=(int(n), 5)) * rng.uniform(0.2, 2, 5) for n in rng.integers(1, 10, 20)]
    tokens += [tokens[i].copy() for i in range(4)]
    factors = np.zeros((24, 5, 5))
    for i, x in enumerate(tokens):
        factors[i, : min(len(x), 5)] = np.linalg.qr(x, mode="r")
    given = Candidates.of(vectors=packed(factors))
    assert given.vectors is not None
    wanted, gains = slow.design(tokens, 12, sigma0)
    assert Fishersft(sigma0=sigma0, of="tokens").select(given, Budget("rows", 12), 0).tolist() == wanted
    moments = logdet.Moments(lambda at: unpacked(given.vectors.raw(at)), 5, 1 / sigma0**2)  # type: ignore[union-attr]
    for place, gain in zip(wanted, gains, strict=True):
        assert float(moments.gains(np.array([place]))[0]) == pytest.approx(gain, abs=1e-5)  # norms are float32
        moments.add(place)
    first = wanted[0]
    twin = logdet.Moments(lambda at: factors[at], 5, 1 / sigma0**2)
    before = float(twin.gains(np.array([first]))[0])
    twin.add(first)
    assert 0 < float(twin.gains(np.array([first]))[0]) < before == pytest.approx(gains[0], abs=1e-9)


def test_fishersft_refuses_vectors_of_another_kind() -> None:
    given = pool(10, 7)
    assert given.vectors is not None
    with pytest.raises(CurateError, match="of=tokens takes vectors of tokens, and these are 7 numbers each; make some"):
        Fishersft(of="tokens").select(given, Budget("rows", 2), 0)
    triangles = replace(pool(10, 6), vectors=replace(pool(10, 6).vectors, score="embed_lm"))  # type: ignore[type-var]
    with pytest.raises(CurateError, match="and these are embed_lm; make some"):
        Fishersft(of="tokens").select(triangles, Budget("rows", 2), 0)
    tokens = replace(triangles, vectors=replace(triangles.vectors, score="embed_tokens"))  # type: ignore[type-var]
    with pytest.raises(CurateError, match="these vectors are of tokens.*add --set of=tokens"):
        Fishersft().select(tokens, Budget("rows", 2), 0)
    assert len(Fishersft(of="tokens").select(tokens, Budget("rows", 2), 0)) == 2


def test_triangles_are_packed_and_unpacked() -> None:
    upper = np.triu(np.arange(1.0, 33.0).reshape(2, 4, 4))
    assert packed(upper)[0].tolist() == [1, 2, 3, 4, 6, 7, 8, 11, 12, 16]
    assert (unpacked(packed(upper)) == upper).all()
    assert [side(n) for n in range(11)] == [0, 1, 0, 2, 0, 0, 3, 0, 0, 0, 4]


def test_round_robin_by_hand() -> None:
    """Three examples and six samples: who takes which, and who finds its first choice gone."""
    degrees = [0, 10, 20, 90, 100, 200]
    at = [[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in degrees]
    target = [[np.cos(np.radians(a)), np.sin(np.radians(a))] for a in (4, 6, 95.1)]
    given = Candidates.of(vectors=at, target=target)
    # 4° takes 0°; 6° takes 10°; 95.1° takes 100°; then 4° takes 20°; 6°, whose nearest are gone, 90°; 95.1° the last.
    assert RoundRobin().select(given, Budget("rows", 6), 0).tolist() == [0, 1, 4, 2, 3, 5]


def test_a_ranking_that_runs_out_is_deepened(monkeypatch: pytest.MonkeyPatch) -> None:
    """All examples want the same samples, so each has to look nine times as deep as it takes."""
    depths: list[int] = []
    rankings = RoundRobin._rankings
    monkeypatch.setattr(RoundRobin, "_rankings", lambda s, c, u, g, d: depths.append(d) or rankings(s, c, u, g, d))
    given = pool(2000, seed=3)
    assert given.target is not None
    same = Candidates.of(vectors=given.require_vectors(""), target=np.repeat(given.target.unit[:1], 9, 0))
    chosen = RoundRobin().select(same, Budget("rows", 900), 0)
    cosine = unit(same) @ given.target.unit[0].astype(np.float64)
    assert chosen.tolist() == np.argsort(-cosine, kind="stable")[:900].tolist() and len(depths) > 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("held", [2, 64])
def test_facility_location_is_the_greedy_choice(seed: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facility, "_AT_ONCE", held)
    monkeypatch.setattr(facility, "_HELD", 100)
    given = pool(40, seed=seed)
    assert Facility().select(given, Budget("rows", 12), 0).tolist() == slow.facility(unit(given), 12)


def test_facility_looks_at_few_gains_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    gains = facility._Cover.gains
    monkeypatch.setattr(facility._Cover, "gains", lambda s, some: looked.append(len(some)) or gains(s, some))
    Facility().select(pool(3000, 16), Budget("rows", 100), 0)
    assert sum(looked) < 0.15 * 3000 * 100  # of vectors without any structure, the worst there are
    looked.clear()
    Facility(covered=500).select(pool(3000, 16), Budget("rows", 100), 0)
    assert sum(looked) <= 101 * (3000 / 100 * np.log(10) + 1)


def test_facility_of_many_covers_a_sample_of_them_nearly_as_well() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 16))[rng.integers(0, 40, 3000)] + 0.3 * rng.normal(size=(3000, 16))
    given = Candidates.of(vectors=vectors)

    def worth(chosen: Any) -> float:
        return float(((1 + unit(given) @ unit(given)[chosen].T) / 2).max(1).sum())

    whole, part = (worth(Facility(covered=n).select(given, Budget("rows", 50), 0)) for n in (3000, 500))
    chance = worth(range(50))
    assert whole >= part > chance + 0.8 * (whole - chance)
    assert len(set(Facility(covered=500).select(given, Budget("rows", 3000), 0).tolist())) == 3000


@pytest.mark.parametrize("keep", ["hard", "easy", "value"])
def test_semdedup_drops_what_an_earlier_one_resembles(keep: Any) -> None:
    given = pool(120, 8, repeats=15)
    method = Semdedup(clusters=4, keep=keep)
    cluster, cosine, _ = clusters(given.require_vectors(""), given.ids, 4, 0, 100)
    by = {"hard": cosine, "easy": -cosine, "value": -given.require_values("")}[keep]
    likeness = slow.earlier_likeness(unit(given), cluster, sorted(range(120), key=lambda i: (by[i], i)))
    chosen = method.select(given, Budget("rows", 60), 0)
    assert np.allclose(likeness[chosen], np.sort(likeness)[:60], atol=1e-6)  # the 60 that least resemble others
    kept = Semdedup(clusters=4, keep=keep, eps=0.2).select(given, Budget("rows", 120), 0)
    assert sorted(kept.tolist()) == np.flatnonzero(likeness <= 0.8).tolist()
    values = given.require_values("")[kept]
    assert values.tolist() == sorted(values, reverse=True)


def test_semdedup_finds_planted_duplicates_and_its_order_decides_which_stay() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(200, 32))
    vectors[100:150] = vectors[:50] + 0.01 * rng.normal(size=(50, 32))
    given = Candidates.of(np.arange(200.0).tolist(), vectors=vectors)
    for keep in ("hard", "easy", "random", "value"):
        stay = set(Semdedup(eps=0.05, keep=keep, clusters=5).select(given, Budget("rows", 200), 0).tolist())
        assert len(stay) == 150 and all((i in stay) != (100 + i in stay) for i in range(50))
        assert keep != "value" or not stay & set(range(50))
    # A chain: the middle resembles both ends; where it comes first both go, where it comes last only it goes.
    degrees = np.radians([0, 20, 40])
    chain = np.stack([np.cos(degrees), np.sin(degrees)], 1)
    for values, left in (([1.0, 2.0, 1.0], [1]), ([2.0, 1.0, 2.0], [0, 2]), ([3.0, 2.0, 1.0], [0])):
        some = Candidates.of(values, vectors=chain)
        kept = Semdedup(eps=0.1, keep="value", clusters=1).select(some, Budget("rows", 3), 0)
        assert sorted(kept.tolist()) == left  # also the third of a chain goes, though what it resembles went before


@pytest.mark.parametrize("quota", ["proportional", "equal"])
def test_kmeans_quota_takes_of_every_cluster_its_share(quota: Any) -> None:
    rng = np.random.default_rng(2)
    centres = np.eye(3, 8)
    which = np.repeat([0, 1, 2], [100, 40, 10])
    given = Candidates.of(rng.normal(size=150).tolist(), vectors=centres[which] + 0.05 * rng.normal(size=(150, 8)))
    found = clusters(given.require_vectors(""), given.ids, 3, 0, 20)[0]  # as the selector finds them
    sizes, values = np.bincount(found), given.require_values("")
    chosen = KmeansQuota(clusters=3, quota=quota).select(given, Budget("rows", 30), 0)
    want = apportion({str(c): float(n) if quota == "proportional" else 1.0 for c, n in enumerate(sizes)}, 30)
    assert np.bincount(found[chosen]).tolist() == list(want.values())
    for cluster in range(3):
        mine = values[chosen][found[chosen] == cluster]
        assert sorted(mine) == sorted(values[found == cluster])[-len(mine) :]  # the highest of the cluster
    near = KmeansQuota(clusters=3, quota=quota, within="closest").select(given, Budget("rows", 3), 0)
    chance = KmeansQuota(clusters=3, quota=quota, within="random").select(given, Budget("rows", 3), 0)
    assert set(near.tolist()) != set(chance.tolist())
    budget = 3 * int(sizes.min()) + 6
    more = KmeansQuota(clusters=3, quota="equal").select(given, Budget("rows", budget), 0)
    assert len(more) == budget and np.bincount(found[more]).min() == sizes.min()  # the others take what it cannot


def test_kmeans_finds_planted_clusters_whatever_the_order() -> None:
    rng = np.random.default_rng(2)
    which = rng.integers(0, 5, 500)
    raw = np.eye(5, 16)[which] + 0.05 * rng.normal(size=(500, 16))
    unit, ids = Candidates.of(vectors=raw).require_vectors(""), np.arange(500, dtype=np.uint64)
    found, cosine, _ = clusters(unit, ids, 5, 1, 30)
    assert {tuple(sorted(set(which[found == c].tolist()))) for c in range(5)} <= {(0,), (1,), (2,), (3,), (4,)}
    for c in range(5):
        centre = unit[found == c].mean(0)
        assert np.allclose(cosine[found == c], unit[found == c] @ centre / np.linalg.norm(centre), atol=1e-3)


@pytest.mark.parametrize("kind", EVERY)
def test_a_larger_budget_begins_with_the_smaller(kind: type[Selector]) -> None:
    given = pool(90, repeats=10)
    if kind is KmeansQuota:
        pytest.skip("shares are rounded anew for every budget")
    small, large = (kind().select(given, Budget("rows", n), 0).tolist() for n in (15, 40))
    assert large[:15] == small


@pytest.mark.parametrize("kind", EVERY)
def test_without_vectors_or_a_target_it_says_what_is_missing(kind: type[Selector]) -> None:
    bare = Candidates.of([1.0, 2.0])
    with pytest.raises(CurateError, match=f"the selector '{kind.name}' works on vectors; say which by --vectors"):
        kind().select(bare, Budget("rows", 1), 0)
    if kind is RoundRobin:
        with pytest.raises(CurateError, match="works on a target"):
            kind().select(Candidates.of(vectors=[[1.0, 0.0]]), Budget("rows", 1), 0)
