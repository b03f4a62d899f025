"""The SQL presets, run on tables of the views' shape whose answers are known (S4.9, C4)."""

from __future__ import annotations

import duckdb
import pytest

from analysis.questions import PRESETS, ask

NAN = float("nan")
RATES = {  # feature: win_rate at steps 0..4
    0: [0.2, 0.2, 0.2, 0.2, 0.2],
    1: [0.2, 0.001, 0.2, 0.001, 0.001],
    2: [0.001] * 5,
    3: [0.2, 0.001, 0.001, 0.001, 0.01],
    4: [0.2, 0.001, NAN, 0.001, 0.001],
}
COLUMNS = ["grad_magnitude", "som_magnitude", "feature_novelty", "effective_win", "gradient_weight", "contender_weight"]


@pytest.fixture
def db():
    with duckdb.connect() as connection:
        connection.execute(
            "create table features (step bigint, layer text, feature integer, win_rate float,"
            + "".join(f" {name} float," for name in COLUMNS)
            + " attraction_weight float)"
        )
        for feature, rates in RATES.items():
            for step, rate in enumerate(rates):
                row = [step, "bcl", feature, rate, *[0.5] * 7]
                connection.execute(f"insert into features values ({', '.join('?' * len(row))})", row)
        connection.execute("insert into features select 9, 'other', 0, 0.0, 0, 0, 0, 0, 0, 0, 0")
        connection.execute("create table metrics (step bigint, name text, value double, source text)")
        for step in range(3):
            for name, value in {"cosine_of_weights": 0.1 * step, "cosine_of_targets": 0.98, "fight": 50 - step}.items():
                connection.execute("insert into metrics values (?, ?, ?, 'hindsight:x')", [step, name, value])
        connection.execute(
            "create table steps as select range as step, 0 as epoch,"
            " case when range = 77 then 5.0 else 1.0 + 0.001 * range end as loss from range(200)"
        )
        yield connection


def test_died_at_is_the_first_step_after_which_it_stays_dead(db):
    answers = {feature: db.execute(ask("died_at", feature=feature)).fetchall() for feature in RATES}
    assert answers == {0: [], 1: [(1, 3)], 2: [(2, 0)], 3: [], 4: [(4, 3)]}
    assert db.execute(ask("all_deaths")).fetchall() == [(2, 0), (1, 3), (4, 3)]


def test_feature_table_has_status_and_order(db):
    rows = db.execute(ask("feature_table", step=4)).fetchall()
    # NaN sorts as the greatest, so what is unknown stands on top.
    assert [(row[0], row[2]) for row in rows] == [
        (0, "winner"),
        (3, "contender"),
        (1, "dead"),
        (2, "dead"),
        (4, "dead"),
    ]
    assert db.execute(ask("feature_table", step=2)).fetchall()[0][2] == "unknown"


def test_alive_counts_per_step(db):
    rows = db.execute(ask("alive")).fetchall()
    assert rows[0] == (0, 4, 4, 5)
    assert rows[4] == (4, 2, 1, 5)
    assert rows[2] == (2, 2, 2, 5)


def test_convergence_and_fight_come_from_hindsight_metrics(db):
    rows = db.execute(ask("why_converge")).fetchall()
    assert [row[0] for row in rows] == [0, 1, 2]
    assert rows[2][1:] == pytest.approx((0.2, 0.98))
    assert db.execute(ask("fighting")).fetchall()[2][1] == 48


def test_hardest_batches_are_those_that_stand_out(db):
    rows = db.execute(ask("hardest_batches")).fetchall()
    assert rows[0][0] == 77
    assert len(rows) == 10


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_for_any_layer_name(db, preset):
    db.execute(ask(preset, layer="it's"))


def test_an_unknown_preset_is_an_error():
    with pytest.raises(KeyError):
        ask("why")
