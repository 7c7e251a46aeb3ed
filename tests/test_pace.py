"""The pace that finds its own level, on simulated hosts: what share of the best it reaches."""

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava_ollama.batch.pace import Fixed, Pace
from tests.simulated import CPU, OLLAMA, Curve, Host, points, share, slots

SEEDS = 8
FLAT = points({1: 1.5, 2: 1.5, 4: 1.5, 8: 1.5})
"""Of 0.24.0: a picture at a time, 4 s each."""


@pytest.mark.parametrize(
    ("curve", "levels", "items", "bar"),
    [
        pytest.param(OLLAMA, (2, 3, 4, 6, 8), 2000, 0.97, id="Ollama 0.34"),
        pytest.param(FLAT, (1,), 300, 0.99, id="Ollama 0.24"),
        pytest.param(slots(1), (1,), 2000, 0.99, id="one slot"),
        pytest.param(CPU, (1, 2), 300, 0.9, id="four are slower, few pictures"),
        pytest.param(CPU, (1, 2), 2000, 0.97, id="four are slower"),
        pytest.param(slots(8), (8,), 600, 0.85, id="8 slots, few pictures"),
        pytest.param(slots(8), (8,), 2000, 0.93, id="8 slots"),
        pytest.param(slots(16), (16,), 2000, 0.9, id="16 slots"),
        pytest.param(slots(64), (64,), 2000, 0.55, id="pool of 64"),
        pytest.param(slots(64), (64,), 10_000, 0.85, id="pool of 64, many pictures"),
    ],
)
def test_it_comes_near_the_best_fixed_level(
    curve: Curve, levels: tuple[int, ...], items: int, bar: float
) -> None:
    found = [share(Host(curve, seed), Pace(), items, levels) for seed in range(SEEDS)]
    assert statistics.median(found) >= bar


@pytest.mark.parametrize(("curve", "start"), [(slots(64), 64), (OLLAMA, 4), (CPU, 1)])
def test_a_remembered_level_loses_next_to_nothing(curve: Curve, start: int) -> None:
    found = [share(Host(curve, seed), Pace(start), 2000, (start,)) for seed in range(SEEDS)]
    assert statistics.median(found) >= 0.96


def test_a_level_that_was_remembered_of_another_machine_is_left() -> None:
    pace = Pace(start=16)
    assert share(Host(CPU), pace, 2000, (1,)) >= 0.6
    assert pace.settled == 1


def test_of_levels_equally_good_it_keeps_a_small_one() -> None:
    pace = Pace(start=32)
    Host(slots(1)).seconds(pace, 4000)
    assert pace.settled <= 2


@pytest.mark.parametrize(("before", "after", "best"), [(slots(16), CPU, 1), (CPU, slots(16), 16)])
def test_a_host_that_changes_is_followed(before: Curve, after: Curve, best: int) -> None:
    pace = Pace()
    changing = Host(before, change=(60.0, after))
    list(changing.run(pace, 6000))
    assert best / 2 <= pace.settled <= best * 2


def test_a_host_that_refuses_more_than_eight_is_kept_at_eight() -> None:
    pace = Pace()
    best = Host(slots(16)).seconds(Fixed(8), 3000)
    assert best / Host(slots(16), refuse=8).seconds(pace, 3000) >= 0.85
    assert 6 <= pace.settled <= 8


def test_a_burst_of_refusals_counts_once() -> None:
    pace = Pace(start=64)
    for _ in range(64):
        pace.slower()
    assert pace.level == 32
    pace.slower()
    assert pace.level == 16


def test_a_stall_is_not_the_levels_fault() -> None:
    pace = Pace()
    clock = 0.0
    for n in range(40):
        clock += 600.0 if n == 2 else 1.0
        pace.answered(clock, 10)
    assert 9 <= pace.rate <= 11 or pace.level > 1


def test_where_there_is_too_little_to_send_the_level_does_not_climb() -> None:
    pace = Pace()
    clock = 0.0
    for _ in range(2000):
        clock += 1.0
        pace.idle()
        pace.answered(clock, 10)
    assert pace.level == 1


def test_fixed_stays() -> None:
    pace = Fixed(5)
    pace.answered(1.0, 10)
    pace.slower()
    pace.idle()
    assert pace.level == 5


@settings(max_examples=150, deadline=None)
@given(
    start=st.integers(-3, 300),
    most=st.integers(1, 256),
    events=st.lists(st.sampled_from("aaaaaaasi"), max_size=400),
    seed=st.integers(0, 9),
)
def test_whatever_happens_the_level_is_one_that_may_be(
    start: int, most: int, events: list[str], seed: int
) -> None:
    pace, clock, draw = Pace(start, most), 0.0, random.Random(seed)
    for event in events:
        clock += draw.choice((0.0, 0.01, 1.0, 100.0))
        if event == "a":
            pace.answered(clock, draw.choice((0, 1, 10, 500)))
        elif event == "s":
            pace.slower()
        else:
            pace.idle()
        assert 1 <= pace.level <= most
        assert 1 <= pace.settled <= most


@settings(max_examples=25, deadline=None)
@given(
    events=st.lists(st.sampled_from("aaaaaaasi"), max_size=300),
    seed=st.integers(0, 99),
)
def test_whatever_happened_it_finds_the_level_again(events: list[str], seed: int) -> None:
    pace, clock, draw = Pace(), 0.0, random.Random(seed)
    for event in events:
        clock += draw.choice((0.0, 0.01, 1.0, 100.0))
        if event == "a":
            pace.answered(clock, 10)
        elif event == "s":
            pace.slower()
        else:
            pace.idle()
    times = list(Host(slots(8), seed, start=clock).run(pace, 6000))
    assert 2000 / (times[-1001] - times[-3001]) >= 0.85 * 8
