"""The questions that a trace must answer, as SQL presets over its views (S4.9, C4).

Room: analysis. Text only: `rewind sql T "..."` and `trace.sql(...)` run them. `{layer}`, `{feature}` and `{step}` are
placeholders: use `ask`.
"""

from __future__ import annotations

from typing import Final

WHY_CONVERGE: Final = """\
select step, max(value) filter (where name = 'cosine_of_weights') as weights,
       max(value) filter (where name = 'cosine_of_targets') as targets
from metrics where name in ('cosine_of_weights', 'cosine_of_targets')
group by step order by step"""
"""Why do features converge? Mean off-diagonal cosine of weights and of SOM targets per step: targets over 0.9 before
the weights are say that the targets lead. The two figures are hindsight metrics (`apps/findings.py:findings`)."""

FIGHTING: Final = """\
select step, max(value) filter (where name = 'fight') as fight, max(value) filter (where name = 'agree') as agree,
       max(value) filter (where name = 'ratio_by_masked_gradient') as som_to_masked_gradient,
       max(value) filter (where name = 'ratio_by_movement') as som_to_movement
from metrics where name in ('fight', 'agree', 'ratio_by_masked_gradient', 'ratio_by_movement')
group by step order by step"""
"""Is the gradient fighting the SOM? Features whose two movements oppose each other (fight) or not (agree) per step, and
how much stronger the SOM is. Hindsight metrics (`apps/findings.py:findings`)."""

DIED_AT: Final = """\
select feature, min(step) as died_at
from features where layer = '{layer}' and feature = {feature}
  and step > coalesce((select max(step) from features
                       where layer = '{layer}' and feature = {feature} and (win_rate >= 0.01 or isnan(win_rate))), -1)
group by feature"""
"""When did a feature start dying? The first step after which its win_rate stays under 0.01; no row: it lives."""

ALL_DEATHS: Final = """\
select feature, min(step) as died_at
from (select feature, step, max(case when win_rate >= 0.01 or isnan(win_rate) then step end)
             over (partition by feature) as last_alive
      from features where layer = '{layer}')
where step > coalesce(last_alive, -1) group by feature order by died_at, feature"""
"""When did each dead feature start dying? As `DIED_AT`, for all features of a layer."""

HARDEST_BATCHES: Final = """\
select step, epoch, loss,
       loss / median(loss) over (order by step rows between 50 preceding and 50 following) as times_usual
from steps order by times_usual desc limit 10"""
"""Which steps cause the most trouble? The ten whose loss stands out most from the hundred around them. Which
*images*: `apps.findings.hardest_images(trace)`, from the recorded loss per sample."""

FEATURE_TABLE: Final = """\
select feature, win_rate, case when isnan(win_rate) then 'unknown' when win_rate < 0.01 then 'dead'
       when win_rate > 0.05 then 'winner' else 'contender' end as status,
       grad_magnitude, som_magnitude, feature_novelty, effective_win, gradient_weight, contender_weight,
       attraction_weight
from features where layer = '{layer}' and step = {step} order by win_rate desc"""
"""The feature table of one step (S4.4)."""

ALIVE: Final = """\
select step, count(*) filter (where win_rate >= 0.01 and not isnan(win_rate)) as alive,
       count(*) filter (where win_rate > 0.05 and not isnan(win_rate)) as winners, count(*) as features
from features where layer = '{layer}' group by step order by step"""
"""How many features are alive, and how many win, at each step."""

PRESETS: Final = {
    "alive": ALIVE,
    "all_deaths": ALL_DEATHS,
    "died_at": DIED_AT,
    "feature_table": FEATURE_TABLE,
    "fighting": FIGHTING,
    "hardest_batches": HARDEST_BATCHES,
    "why_converge": WHY_CONVERGE,
}


def ask(preset: str, *, layer: str = "bcl", feature: int = 0, step: int = 0) -> str:
    """The SQL of a preset of `PRESETS` with its placeholders filled. Raises KeyError for an unknown one."""
    return PRESETS[preset].format(layer=layer.replace("'", "''"), feature=int(feature), step=int(step))
