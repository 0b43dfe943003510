"""The final check: what designs score on the test split, once and never to choose by."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict

from autopeft.executors.base import Executor
from autopeft.searching.clock import next_results
from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus, TrialRecord
from autopeft.study.folder import StudyFolder
from autopeft.study.store import StudyStore
from autopeft.study.test_scores import write_score

MAX_TRIES = 3
"""How often a design is scored again whose worker was lost, the first time included."""


def score_on_test(
    records: Sequence[TrialRecord],
    *,
    executor: Executor,
    store: StudyStore,
    folder: StudyFolder,
    make_segment: Callable[[TrialRecord, Sequence[TrialRecord]], Segment],
    goes_on: Callable[[TrialRecord], bool],
) -> None:
    """Score trained designs on the test split, and write each score down as it comes.

    Args:
        records: What is to be scored, the first one first.
        executor: Where.
        store: Takes the scores, beside those that it has.
        folder: Takes predictions, samples and errors.
        make_segment: Makes the segment of a trial, beside those that wait for theirs.
        goes_on: Whether the next one is to be scored now; what runs is waited for.
    """
    waiting, n_tries, n_running = list(records), Counter[int](), 0
    by_number = {record.number: record for record in records}
    while True:
        while waiting and executor.free() > 0 and goes_on(waiting[0]):
            record = waiting.pop(0)
            n_tries[record.number] += 1
            executor.submit(make_segment(record, waiting))
            n_running += 1
        if not n_running and not (waiting and goes_on(waiting[0])):
            return
        for result in next_results(executor):
            n_running -= 1
            if result.error:
                folder.write(folder.log(result.trial), result.error.encode())
            if result.status is SegmentStatus.LOST and n_tries[result.trial] < MAX_TRIES:
                waiting.append(by_number[result.trial])
            elif result.status is SegmentStatus.DONE:
                _write(result, store, folder)


def _write(result: SegmentResult, store: StudyStore, folder: StudyFolder) -> None:
    folder.write_json(folder.predictions("test", result.trial), list(result.predictions))
    if result.samples:
        folder.write_json(folder.samples(result.trial), [asdict(sample) for sample in result.samples])
    write_score(store, result)
