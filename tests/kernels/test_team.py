"""Joining a team, meeting and leaving: nobody waits for a thread that does not come, whoever comes when."""

import threading
import time

import numba
import numpy as np
import pytest

from fastbp.kernels import team
from fastbp.kernels.calls import cycle_counter, int64_at
from fastbp.kernels.target import cpu_family

pytestmark = pytest.mark.timeout(120)

N_TASKS = 12
STAY = 2**62  # spins: for ever, so that no test depends on how busy the machine is


@numba.njit(nogil=True)
def _work(sync, is_helper, n_wanted, leave_spins, values, sums, n_rounds):
    """Two phases a round, as in training: the second one reads what all have written in the first.

    Returns the worker's index, -1 for a helper without a part.
    """
    meeting = int64_at(sync)
    worker, n_workers = team.enter(meeting, is_helper, n_wanted, 0, leave_spins)
    if worker < 0:
        return worker
    n_meetings = 0
    for _ in range(n_rounds):
        for task in range(worker, values.size, n_workers):
            sums[task] = values[task] + 1
        n_meetings += 1
        team.meet(meeting, n_workers, n_meetings)
        for task in range(worker, values.size, n_workers):
            values[task] = sums[values.size - 1 - task] % 1_000_003
        n_meetings += 1
        team.meet(meeting, n_workers, n_meetings)
    team.leave(meeting, worker, n_workers)
    return worker


class Call:
    """One call of the kernel by a team, and what each of its workers returned."""

    def __init__(self, n_wanted, n_rounds=20):
        self.sync = np.zeros(team.SYNC_SIZE, np.int64)
        self.values, self.sums = np.arange(N_TASKS), np.zeros(N_TASKS, np.int64)
        self.n_wanted, self.n_rounds = n_wanted, n_rounds
        self.indices = []

    def enter(self, is_helper, leave_spins=STAY):
        sync = self.sync.ctypes.data
        index = _work(sync, is_helper, self.n_wanted, leave_spins, self.values, self.sums, self.n_rounds)
        self.indices.append(index)
        return index

    def start_helper(self):
        thread = threading.Thread(target=self.enter, args=(1,), daemon=True)
        thread.start()
        return thread

    def wait_for_helpers(self, n_helpers):
        while self.sync[team.JOINED] < n_helpers:
            time.sleep(1e-4)

    def assert_right(self):
        alone = Call(1, self.n_rounds)
        alone.enter(0)
        assert (self.values == alone.values).all()


@pytest.fixture(autouse=True, scope="module")
def compiled():
    Call(1).enter(0)


@pytest.mark.parametrize("n_wanted", [2, 3, 5])
def test_enter_without_helpers_works_alone(n_wanted):
    call = Call(n_wanted)
    assert call.enter(0) == 0
    assert call.sync[team.N_WORKERS] == 1
    call.assert_right()


@pytest.mark.parametrize("n_helpers", [1, 2, 4])
def test_enter_with_helpers_at_the_door_shares_the_work(n_helpers):
    call = Call(n_helpers + 1)
    helpers = [call.start_helper() for _ in range(n_helpers)]
    call.wait_for_helpers(n_helpers)
    call.enter(0)
    for helper in helpers:
        helper.join()
    assert sorted(call.indices) == list(range(n_helpers + 1))
    assert call.sync[team.LEFT] == n_helpers
    call.assert_right()


def test_enter_more_helpers_than_wanted_shares_the_work():
    call = Call(2)
    helpers = [call.start_helper() for _ in range(3)]
    call.wait_for_helpers(3)
    call.enter(0)
    for helper in helpers:
        helper.join()
    assert sorted(call.indices) == [0, 1, 2, 3]
    call.assert_right()


def test_enter_late_helper_returns_at_once():
    call = Call(2)
    call.enter(0)
    before = call.values.copy()
    assert call.enter(1) == -1
    assert (call.values == before).all()
    assert call.sync[team.NEXT_INDEX] == 0


def test_enter_after_an_abort_helper_goes():
    call = Call(2)
    helper = call.start_helper()
    call.wait_for_helpers(1)
    call.sync[team.ABORT] = 1
    helper.join()
    assert call.indices == [-1]
    assert call.enter(1) == -1  # one that comes after the abort
    assert call.sync[team.JOINED] == 0


def test_enter_without_worker_0_helper_goes_by_itself():
    call = Call(2)
    assert call.enter(1, team.LEAVE_SPINS) == -1
    assert call.sync[team.JOINED] == 0


def test_enter_after_a_helper_has_gone_works_with_the_others():
    call = Call(3)
    assert call.enter(1, team.LEAVE_SPINS) == -1
    helper = call.start_helper()
    call.wait_for_helpers(1)
    call.enter(0)
    helper.join()
    assert call.indices[0] == -1
    assert sorted(call.indices[1:]) == [0, 1]
    call.assert_right()


def test_enter_abort_and_door_at_the_same_time_nobody_is_stuck():
    # Not what the host does (worker 0 comes or the flag is raised); helpers that leave while the door closes.
    rng = np.random.default_rng(0)
    for _ in range(300):
        call = Call(3, n_rounds=3)
        helpers = [call.start_helper() for _ in range(2)]
        call.wait_for_helpers(int(rng.integers(3)))
        aborter = threading.Thread(target=call.sync.__setitem__, args=(team.ABORT, 1))
        aborter.start()
        call.enter(0)
        for thread in (aborter, *helpers):
            thread.join()
        taking_part = sorted(index for index in call.indices if index >= 0)
        assert taking_part == list(range(int(call.sync[team.N_WORKERS])))
        call.assert_right()


def test_meet_waits_for_the_slowest():
    call = Call(3, n_rounds=3000)
    helpers = [call.start_helper() for _ in range(2)]
    call.wait_for_helpers(2)
    call.enter(0)
    for helper in helpers:
        helper.join()
    assert call.sync[team.ARRIVALS] == 3 * 2 * 3000
    call.assert_right()


@numba.njit(nogil=True)
def _cycles_alone(sync, patience):
    """Cycles that worker 0 waits for a helper that never comes."""
    start = cycle_counter()
    team.enter(int64_at(sync), 0, 2, patience)
    return cycle_counter() - start


@pytest.mark.skipif(cpu_family() != "x86", reason="the cycle counter may be slower than a spin")
def test_enter_waits_as_long_as_its_patience():
    patience = 5_000_000  # some milliseconds, several times what a short call waits
    assert _cycles_alone(np.zeros(team.SYNC_SIZE, np.int64).ctypes.data, patience) >= patience
