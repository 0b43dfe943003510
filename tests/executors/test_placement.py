"""Where segments go: no device is promised twice, nothing starves, and what fits nowhere is said."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.executors.placement import OVERHEAD_BYTES, Need, Placement, Seat, plan, room

GiB = 2**30
DEVICES = {"a": 24 * GiB, "b": 24 * GiB, "c": 80 * GiB, "d": None}


def need(gib: float, base: str = "none") -> Need:
    return Need(n_bytes=int(gib * GiB), base=base)


def seat(device: str = "a", running: Need | None = None, **held: float) -> Seat:
    sizes = {base: int(gib * GiB) for base, gib in held.items()}
    return Seat(device=device, capacity_bytes=DEVICES[device], running=running, held=sizes)


def used(seats: list[Seat]) -> Counter[str]:
    """Count what is in use without the code under test: overheads, what runs, and other bases that are held."""
    total: Counter[str] = Counter()
    for each in seats:
        total[each.device] += OVERHEAD_BYTES
        own = None if each.running is None else each.running.base
        total[each.device] += sum(n for base, n in each.held.items() if base != own)
        if each.running is not None:
            total[each.device] += max(each.running.n_bytes, each.held.get(each.running.base, 0))
    return total


def is_sound(seats: list[Seat]) -> bool:
    return all(DEVICES[device] is None or n <= DEVICES[device] for device, n in used(seats).items())


def follow(found: Placement, waiting: list[Need], seats: list[Seat]) -> list[Seat]:
    """Return the seats once a plan has been carried out and the replaced workers are back."""
    after = [each.emptied() if i in found.replace else each for i, each in enumerate(seats)]
    for position, i in found.starts.items():
        after[i] = after[i].taking(waiting[position])
    return after


needs = st.builds(need, st.one_of(st.just(0), st.floats(0.1, 100)), st.sampled_from(["none", "nf4"]))
bases = st.dictionaries(st.sampled_from(["none", "nf4"]), st.floats(0.1, 12))
seats_anywhere = st.builds(
    lambda device, running, held: seat(device, running, **held),
    st.sampled_from(sorted(DEVICES)),
    st.none() | needs.filter(lambda n: n.n_bytes > 0),
    bases,
)
boards = st.lists(seats_anywhere, max_size=8).filter(is_sound)


@given(st.lists(needs, max_size=8), boards)
def test_no_device_is_ever_promised_twice(waiting: list[Need], seats: list[Seat]) -> None:
    waiting = [each for each in waiting if each.n_bytes]  # of the others nothing is known
    found = plan(waiting, seats)
    assert is_sound(follow(found, waiting, seats))
    assert len(set(found.starts.values())) == len(found.starts)
    assert all(seats[i].running is None for i in (*found.starts.values(), *found.replace))
    assert not set(found.starts.values()) & set(found.replace)


@given(st.lists(needs, max_size=8), boards)
def test_each_segment_starts_or_waits_or_fits_nowhere(waiting: list[Need], seats: list[Seat]) -> None:
    found = plan(waiting, seats)
    assert not set(found.starts) & set(found.nowhere)
    for position, each in enumerate(waiting):
        empty = [seat_.emptied() for seat_ in seats]
        fits = any(
            is_sound([*empty[:i], empty[i].taking(each), *empty[i + 1 :]]) or not each.n_bytes
            for i in range(len(seats))
        )
        assert (position in found.nowhere) == (not fits)


@given(needs, boards)
def test_one_alone_starts_where_room_is_or_makes_room(each: Need, seats: list[Seat]) -> None:
    found = plan([each], seats)
    could = [
        i
        for i, seat_ in enumerate(seats)
        if seat_.running is None and (not each.n_bytes or is_sound([*seats[:i], seat_.taking(each), *seats[i + 1 :]]))
    ]
    assert bool(found.starts) == bool(could)
    assert not (found.starts and found.reserved)


@given(needs, st.lists(needs, max_size=20), boards)
def test_small_segments_do_not_starve_a_large_one(first: Need, others: list[Need], seats: list[Seat]) -> None:
    """Whatever arrives behind it, the first one starts by the time that all which ran before it has ended."""
    if plan([first], seats).nowhere:
        return
    waiting, before = [first, *others], [each.running for each in seats]
    for _ in range(len(seats) + 3):
        found = plan(waiting, seats)
        seats = follow(found, waiting, seats)
        if 0 in found.starts:
            return
        waiting = [each for position, each in enumerate(waiting) if position not in (*found.starts, *found.nowhere)]
        # One of those that ran before ends; what started meanwhile goes on for ever.
        running = [i for i, was in enumerate(before) if was is not None]
        if running:
            seats[running[0]] = Seat(
                device=seats[running[0]].device,
                capacity_bytes=seats[running[0]].capacity_bytes,
                held=seats[running[0]].held,
            )
            before[running[0]] = None
    raise AssertionError("it never started")


@pytest.mark.parametrize(
    ("waiting", "seats", "starts"),
    [
        # Large ones keep the large card free for what needs it; longest first: the order of arrival decides.
        ([need(10), need(60)], [seat("c"), seat("a")], {0: 1, 1: 0}),
        ([need(60), need(10)], [seat("a"), seat("c")], {0: 1, 1: 0}),
        # Two share a card while their sum fits.
        ([need(11), need(11)], [seat("a"), seat("a")], {0: 0, 1: 1}),
        ([need(12), need(12)], [seat("a"), seat("a")], {0: 0}),
        # What another worker keeps loaded counts, and a base that is there already does not count twice.
        ([need(16)], [seat("a"), seat("a", nf4=10)], {}),
        ([need(16, "nf4")], [seat("a"), seat("a", nf4=10)], {0: 1}),
        # The worker that has the base comes first among equals.
        ([need(4, "nf4")], [seat("a"), seat("a", nf4=2), seat("b")], {0: 1}),
        # Where nothing is known, everything starts.
        ([need(0), need(0)], [seat("a"), seat("d")], {0: 0, 1: 1}),
        ([need(500)], [seat("a"), seat("d")], {0: 1}),
    ],
)
def test_where_segments_start(waiting: list[Need], seats: list[Seat], starts: dict[int, int]) -> None:
    assert plan(waiting, seats).starts == starts


def test_idle_workers_give_their_bases_up_for_what_fits_only_then() -> None:
    seats = [seat("a", nf4=10), seat("a", none=9), seat("a", need(4))]
    found = plan([need(17)], seats)
    assert found.replace == (0,), "the worker that has the base keeps it"
    assert plan([need(17)], follow(found, [need(17)], seats)).starts == {0: 1}
    assert plan([need(21)], seats).replace == (), "as long as something runs there, that would not be enough"


def test_a_reserved_device_takes_nothing_else_and_others_go_on() -> None:
    seats = [seat("c", need(30)), seat("c"), seat("a")]
    found = plan([need(60), need(5)], seats)
    assert found.reserved == {"c"}
    assert found.starts == {1: 2}
    assert plan([need(60), need(30)], seats).starts == {}, "it would fit beside what runs, and keep the first one out"


def test_room_is_what_is_left_beside_the_workers_themselves() -> None:
    assert room([seat("a"), seat("a", need(5)), seat("d")]) == [23 * GiB, 23 * GiB, float("inf")]
    assert plan([need(23.5)], [seat("a")]).starts == {0: 0}
    assert plan([need(23.5)], [seat("a"), seat("a")]).nowhere == (0,)
    assert plan([need(1)], []).nowhere == (0,)
