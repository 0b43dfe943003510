import json
from collections.abc import Callable
from math import log10

import pytest

from autopeft.errors import BudgetError, ResultError
from autopeft.metrics import METRICS, paired_difference
from autopeft.results.result import SearchResult
from autopeft.spec.trial import Outcome, TrialRecord
from tests.results.generated import FULL, HEAD, Builder, lora

Make = Callable[[int], SearchResult]
SEEDS = range(12)


def complete(result: SearchResult) -> list[TrialRecord]:
    return [
        trial for trial in result.state.trials if trial.outcome is Outcome.COMPLETE and max(trial.excess.values()) <= 0
    ]


def accuracy(trial: TrialRecord) -> float:
    return trial.scores["accuracy"]


def params(trial: TrialRecord) -> int:
    return trial.estimate.trainable_params


def undominated(trials: list[TrialRecord]) -> list[TrialRecord]:
    def beats(a: TrialRecord, b: TrialRecord) -> bool:
        no_worse = accuracy(a) >= accuracy(b) and params(a) <= params(b)
        return no_worse and (accuracy(a) > accuracy(b) or params(a) < params(b))

    return [trial for trial in trials if not any(beats(other, trial) for other in trials)]


def predictions(result: SearchResult, which: object) -> list[int]:
    return json.loads((result.state.folder / f"predictions/validation-{which}.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize("seed", SEEDS)
def test_the_best_is_the_highest_score_and_of_ties_the_cheapest(random_result: Make, seed: int) -> None:
    result = random_result(seed)
    top = max(map(accuracy, complete(result)))
    cheapest = min(params(trial) for trial in complete(result) if accuracy(trial) == top)
    assert (accuracy(result.best()), params(result.best())) == (top, cheapest)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_limit_on_what_was_not_optimised_looks_beyond_the_front(random_result: Make, seed: int) -> None:
    result = random_result(seed)
    limit = 320 * 2**20
    within = [trial for trial in complete(result) if trial.estimate.peak_memory <= limit]
    found = result.best(peak_memory="320MiB")
    assert found.estimate.peak_memory <= limit
    assert accuracy(found) == max(map(accuracy, within))


@pytest.mark.parametrize("seed", SEEDS)
def test_within_one_standard_error_is_the_cheapest_tied_design_of_the_front(random_result: Make, seed: int) -> None:
    result = random_result(seed)
    labels, top = predictions(result, "labels"), predictions(result, result.best().number)
    tied = []
    for trial in undominated(complete(result)):
        gap, standard_error = paired_difference(METRICS["accuracy"], labels, top, predictions(result, trial.number))
        if gap <= standard_error:
            tied.append(trial)
    assert params(result.best(within="1se")) == min(map(params, tied))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_knee_is_furthest_from_the_chord(random_result: Make, seed: int) -> None:
    result = random_result(seed)
    points = {(log10(params(t)), accuracy(t)): t for t in undominated(complete(result))}
    (x0, y0), (x1, y1) = min(points), max(points)

    def distance(point: tuple[float, float]) -> float:
        """Signed Euclidean distance to the chord in the unit square, by the cross product."""
        x, y = (point[0] - x0) / (x1 - x0), (point[1] - y0) / (y1 - y0)
        return (y - x) / 2**0.5

    furthest = max(map(distance, points))
    found = result.knee()
    if len(points) < 3 or furthest <= 1e-9:
        assert accuracy(found) == y1
    else:
        assert distance((log10(params(found)), accuracy(found))) == pytest.approx(furthest)


def test_a_front_that_bends_has_its_knee_at_the_bend(build: Builder) -> None:
    build.add(lora(1), params=10_000, skill=0.60)
    build.add(lora(2), params=20_000, skill=0.80)
    build.add(lora(3), params=200_000, skill=0.82)
    assert SearchResult(build.state()).knee().number == 1


def test_a_front_that_bends_the_other_way_has_none_and_gives_the_best(build: Builder) -> None:
    build.add(lora(1), params=10_000, skill=0.60)
    build.add(lora(2), params=100_000, skill=0.62)
    build.add(lora(3), params=200_000, skill=0.82)
    assert SearchResult(build.state()).knee().number == 2


def test_any_metric_that_was_measured_and_any_cost_can_be_asked_for(result: SearchResult) -> None:
    top = max(complete(result), key=lambda trial: trial.scores["matthews"])
    assert result.best("matthews").number == top.number
    assert result.best("trainable_params").number == result.front[0].number
    assert params(result.best(trainable_params="0.7%")) <= 0.007 * result.state.model.n_parameters


def test_what_cannot_be_answered_is_refused_with_the_reason(result: SearchResult) -> None:
    with pytest.raises(ResultError, match="did you mean 'macro_f1'"):
        result.best("macro_f2")
    with pytest.raises(ResultError, match="costs are exact"):
        result.best("trainable_params", within="1se")
    with pytest.raises(ResultError, match="must be one of 1se"):
        result.best(within="2se")  # type: ignore[arg-type]
    with pytest.raises(ResultError, match=r"trainable parameters <= 1k must hold, but the smallest .* has 149k"):
        result.best(trainable_params=1000)
    with pytest.raises(BudgetError, match="did you mean 'peak_memory'"):
        result.best(peak_memoy="1GiB")


def test_limits_that_only_exclude_each_other_are_told_apart_from_one_that_is_too_low(build: Builder) -> None:
    build.add(lora(1), params=100_000, skill=0.7, memory_mib=300)
    build.add(lora(2), params=200_000, skill=0.6, memory_mib=200)
    result = SearchResult(build.state())
    assert result.best(peak_memory="250MiB").number == 1
    with pytest.raises(ResultError, match="each exceeds one of trainable_params, peak_memory"):
        result.best(trainable_params=150_000, peak_memory="250MiB")
    # The smallest is the one that no metric puts on the front.
    with pytest.raises(ResultError, match=r"the smallest design that trained in full has 200\.0 MiB"):
        result.best(peak_memory="100MiB")


def test_an_empty_front_says_how_the_trials_ended_and_the_first_error(build: Builder) -> None:
    build.add(lora(64), params=900_000, outcome=Outcome.INFEASIBLE)
    build.add(lora(2), params=1000, outcome=Outcome.FAILED, reason="ValueError: shapes (see logs/trial-1.txt)")
    build.add(lora(4), params=1000, outcome=Outcome.STOPPED, skill=0.6, share=0.25)
    result = SearchResult(build.state())
    assert len(result.front) == 0
    why = r"1 stopped, 1 infeasible, 1 failed, 12 refused .*first error, of trial 1: ValueError: shapes"
    for question in (result.best, result.knee, result.gain_over_yardstick, lambda: result.best(within="1se")):
        with pytest.raises(ResultError, match=why):
            question()
    with pytest.raises(ResultError, match="no trial was started"):
        SearchResult(build.state(trials=(), n_refused={})).best()


def test_the_gain_compares_at_no_more_cost_at_no_less_quality_and_overall(result: SearchResult) -> None:
    gain = result.gain_over_yardstick()
    yardstick = gain.yardstick
    assert yardstick.number == 0
    no_dearer = [trial for trial in complete(result) if params(trial) <= params(yardstick)]
    assert gain.at_no_more_cost is not None
    assert accuracy(gain.at_no_more_cost.trial) == max(map(accuracy, no_dearer))
    as_good = [trial for trial in complete(result) if accuracy(trial) >= accuracy(yardstick)]
    assert gain.cheapest_as_good is not None
    assert params(gain.cheapest_as_good.trial) == min(map(params, as_good))
    gaps = {trial.number: result.compare(yardstick, trial).validation for trial in result.front}
    tied = [t for t in result.front if gaps[t.number].value <= gaps[t.number].standard_error]
    assert gain.cheapest_tied is not None
    assert params(gain.cheapest_tied.trial) == min(map(params, tied))
    assert gain.overall.trial.number == result.best().number
    assert gain.overall.validation.value == pytest.approx(accuracy(gain.overall.trial) - accuracy(yardstick))


def test_without_a_yardstick_the_gain_says_so(build: Builder) -> None:
    build.add(lora(1), params=HEAD, skill=0.7)
    with pytest.raises(ResultError, match="no yardstick to compare with"):
        SearchResult(build.state()).gain_over_yardstick()
    build.add(lora(8), params=HEAD, outcome=Outcome.INTERRUPTED, share=100 / FULL, baseline="yardstick")
    with pytest.raises(ResultError, match=r"the yardstick \(trial 1\) did not train in full: it is interrupted"):
        SearchResult(build.state()).gain_over_yardstick()


def test_a_yardstick_cheaper_than_the_whole_front_has_nothing_at_no_more_cost(build: Builder) -> None:
    build.add(lora(8), params=HEAD, skill=0.7, baseline="yardstick")
    state = build.state()
    over = dict.fromkeys(state.limits, 0.1)
    build.trials[0] = type(build.trials[0])(**{**vars(build.trials[0]), "excess": over})
    build.add(lora(16), params=2 * HEAD, skill=0.8)
    gain = SearchResult(build.state()).gain_over_yardstick()
    assert gain.at_no_more_cost is None
    assert gain.overall.trial.number == 1
