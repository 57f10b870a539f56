"""Calls of about 50 ms, and the choice between one worker and a team; with made-up speeds instead of clocks."""

import pytest

from fastbp.pacing import Crew, Pace, ranges

TARGET = 0.05


@pytest.mark.parametrize("speed", [1e6, 1e9, 1e12])
def test_pace_comes_to_the_target_for_any_speed(speed):
    pace = Pace()
    for _ in range(20):
        pace.learn(pace.budget(), pace.budget() / speed)
    assert pace.budget() / speed == pytest.approx(TARGET, rel=1e-3)


def test_pace_grows_at_most_fourfold_after_one_lucky_measurement():
    pace = Pace()
    before = pace.budget()
    pace.learn(before, 0.0)
    assert pace.budget() == 4 * before


def test_pace_has_something_to_do_however_little_time_is_left():
    pace = Pace()
    assert pace.budget(0.0) == pace.budget(-1.0) == 1
    assert pace.budget(TARGET / 2) == pace.budget() // 2


@pytest.mark.parametrize("n_samples", [1, 64, 65, 1000])
def test_ranges_cover_all_samples_at_multiples_of_the_block(n_samples):
    pieces = list(ranges(n_samples, block=64, cost=10**9))
    assert [first for first, _ in pieces] == [0, *(last for _, last in pieces[:-1])]
    assert all(first % 64 == 0 for first, _ in pieces)
    assert pieces[-1][1] == n_samples


def run(crew, speeds, seconds):
    """Work for about so long at these speeds (cost per second, by workers); return the time spent by workers."""
    spent = dict.fromkeys(speeds, 0.0)
    while sum(spent.values()) < seconds:
        n_workers, budget = crew.next_call()
        duration = budget / speeds[n_workers]
        crew.learn(n_workers, budget, duration)
        spent[n_workers] += duration
    return spent


@pytest.mark.parametrize("gain", [1.2, 1.9, 3.8])
def test_crew_keeps_a_team_that_pays(gain):
    spent = run(Crew(4), {1: 1e9, 4: 1e9 * gain}, 60.0)
    assert spent[1] < 0.01 * spent[4]


@pytest.mark.parametrize("loss", [1.2, 2.0, 20.0])
def test_crew_leaves_a_team_that_does_not_pay(loss):
    spent = run(Crew(4), {1: 1e9, 4: 1e9 / loss}, 60.0)
    assert spent[4] < 0.05 * spent[1]


def test_crew_notices_when_the_machine_becomes_busy_and_free_again():
    crew, free, busy = Crew(2), {1: 1e9, 2: 1.9e9}, {1: 0.9e9, 2: 1e8}
    run(crew, free, 2.0)
    run(crew, busy, 20.0)
    assert run(crew, busy, 10.0)[2] < 1.0
    run(crew, free, 20.0)
    assert run(crew, free, 10.0)[1] < 1.0


def test_crew_of_one_tries_nothing():
    crew = Crew(1)
    assert run(crew, {1: 1e9}, 5.0)[1] >= 5.0


def test_crew_calls_of_less_than_a_millisecond_are_short():
    crew = Crew(2)
    run(crew, {1: 1e9, 2: 2e9}, 1.0)
    assert crew.is_short(int(0.9e-3 * 2e9))
    assert not crew.is_short(int(1.1e-3 * 2e9))


def test_crew_short_calls_of_one_worker_are_no_trials():
    crew = Crew(2)
    for _ in range(100):
        crew.learn(1, 10**6, 1e-6)  # seems fast
        assert crew.next_call()[0] == 2
