"""The files that segments bring and begin with, many of them written at the same time."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial

from autopeft.spec.trial import Segment, SegmentResult, SegmentStatus
from autopeft.study.folder import ADAPTER_MARK, StudyFolder

N_WRITERS = 16
"""Files that are written at the same time: each waits for the disk, and disks make many durable at once."""


def write_results(folder: StudyFolder, results: Sequence[SegmentResult], *, n_full_examples: int) -> None:
    """Write checkpoints, errors, adapters and predictions for good; what tells that an adapter is whole comes last."""
    full = [result for result in results if _is_full(result, n_full_examples)]
    jobs: list[Callable[[], object]] = []
    for result in results:
        if result.checkpoint is not None:
            jobs.append(partial(folder.checkpoints.save, result.trial, result.examples, result.checkpoint))
        if result.error:
            jobs.append(partial(folder.write, folder.log(result.trial), result.error.encode()))
    last: list[Callable[[], object]] = []
    for result in full:
        for name, content in result.artifact.items():
            job = partial(folder.write, folder.adapter(result.trial) / name, content)
            (last if name == ADAPTER_MARK else jobs).append(job)
        jobs.append(
            partial(folder.write_json, folder.predictions("validation", result.trial), list(result.predictions))
        )
    _at_once(jobs)
    _at_once(last)


def copy_checkpoints(folder: StudyFolder, segments: Sequence[Segment]) -> None:
    """Give each trial that has no checkpoint of its own yet a copy of the one that it begins with."""
    saved = folder.checkpoints
    copies = [(s.trial, s.start, s.checkpoint) for s in segments if s.checkpoint and not saved.files(s.trial)]
    _at_once([partial(saved.save, *copy) for copy in copies])


def _is_full(result: SegmentResult, n_full_examples: int) -> bool:
    is_done = result.status is SegmentStatus.DONE and not result.odd_scores
    return is_done and result.examples >= n_full_examples


def _at_once(jobs: Sequence[Callable[[], object]]) -> None:
    """Do jobs that wait for a disk, several at a time."""
    if len(jobs) == 1:
        jobs[0]()
    elif jobs:
        submitted = [_writers().submit(job) for job in jobs]
        wait(submitted)
        for done in submitted:
            done.result()  # raises what the job raised


@cache
def _writers() -> ThreadPoolExecutor:
    """Return the threads that write; to start some for each batch would take as long as the writing."""
    return ThreadPoolExecutor(max_workers=N_WRITERS, thread_name_prefix="autopeft-writer")


os.register_at_fork(after_in_child=_writers.cache_clear)  # a forked process has the pool, but none of its threads
