"""Any number of threads gives the same bits, and whatever happens around them, nobody waits for ever."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import fastbp
from cases import OPTIMIZERS
from fastbp import driver, pacing, workers
from fastbp.kernels import border, team, training
from fastbp.pacing import Pace
from problems import bits, classes, state_of
from test_bits import CASES, assert_same_run

pytestmark = pytest.mark.timeout(300)

SECONDS = 120  # for a process of its own: a hang is a failure, not a stuck suite
SHARED = ["several blocks", "several super-blocks", "several tiles", "wide"]  # cases with tasks for more than one
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")


@pytest.fixture(params=SHARED)
def case(request):
    return CASES[request.param]


@pytest.fixture
def many_cores(monkeypatch):
    """Lift the cap on threads, share steps of any cost, and never find that one worker is faster."""
    monkeypatch.setattr(workers, "available_cores", lambda: 16)
    monkeypatch.setattr(workers, "_WORTH_SHARING", 0)
    monkeypatch.setattr(pacing, "_FIRST_TRIAL", np.inf)


class Teams:
    """Stands in for `run_team`: waits until all helpers are at the door, and keeps the sizes of the teams.

    It can raise KeyboardInterrupt before or after some calls of worker 0, as Ctrl-C does.
    """

    def __init__(self, interrupts=0.0, seed=0):
        self.sizes, self._interrupts, self._rng = [], interrupts, np.random.default_rng(seed)

    def __call__(self, n_workers, call):
        if n_workers == 1:
            return workers.run_team(1, call)
        sync = np.zeros(team.SYNC_SIZE, np.int64)
        helpers = [threading.Thread(target=call, args=(i, sync), daemon=True) for i in range(1, n_workers)]
        for helper in helpers:
            helper.start()
        patience = time.monotonic() + 1.0  # on a loaded machine the first may have gone before the last has come
        while sync[team.JOINED] < n_workers - 1 and time.monotonic() < patience:
            time.sleep(1e-4)
        try:
            self._interrupt()
            status = call(0, sync)
            self._interrupt()
            return status
        except KeyboardInterrupt:
            sync[team.ABORT] = 1
            raise
        finally:
            for helper in helpers:
                helper.join()
            self.sizes.append(int(sync[team.N_WORKERS]))

    def _interrupt(self):
        if self._rng.random() < self._interrupts:
            raise KeyboardInterrupt


@pytest.fixture
def teams(monkeypatch, many_cores):
    teams = Teams()
    monkeypatch.setattr(driver, "run_team", teams)
    return teams


def set_budgets(monkeypatch, case, n_steps=lambda: 3.0):
    """Let each call of the kernel take about so many steps, or parts of one; by default one would take all."""
    n_samples = len(case.x)
    cost = driver.step_cost(
        case.trainer().model._network.architecture, min(case.options["batch_size"] or n_samples, n_samples)
    )
    monkeypatch.setattr(Pace, "budget", lambda self, seconds_left=None: int(cost * n_steps()))


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [2, 3, 16, "auto"])
def test_fit_any_threads_give_the_same_bits(case, threads, dtype, teams, monkeypatch):
    expected = case.trained(dtype)
    set_budgets(monkeypatch, case)
    assert_same_run(case.fit(case.trainer(dtype, threads=threads)), expected)
    assert max(teams.sizes) > 1


@pytest.mark.parametrize("threads", [2, 3, 16, "auto"])
@pytest.mark.parametrize("name", ["tiny", "online"])
def test_fit_of_single_tasks_with_threads_is_serial(name, threads, teams, monkeypatch):
    case = CASES[name]
    expected = case.trained()
    set_budgets(monkeypatch, case)
    assert_same_run(case.fit(case.trainer(threads=threads)), expected)
    assert teams.sizes == []


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, fastbp.Adam(fastbp.schedules.Warmup(5, 1e-3))], ids=repr)
@pytest.mark.parametrize("name", ["several blocks", "several tiles"])
def test_fit_any_optimizer_with_threads_gives_the_same_bits(name, optimizer, teams, monkeypatch):
    case = CASES[name]
    expected = case.fit(case.trainer(optimizer=optimizer))
    set_budgets(monkeypatch, case)
    assert_same_run(case.fit(case.trainer(optimizer=optimizer, threads=3)), expected)
    assert max(teams.sizes) > 1


@pytest.mark.parametrize("threads", [2, 3])
def test_fit_any_chunks_with_threads_give_the_same_bits(case, threads, teams, monkeypatch):
    expected = case.trained()
    rng = np.random.default_rng(threads)
    set_budgets(monkeypatch, case, lambda: 10 ** rng.uniform(-1.5, 0.5))
    assert_same_run(case.fit(case.trainer(threads=threads)), expected)
    assert max(teams.sizes) > 1


def test_fit_other_threads_after_every_step_gives_the_same_bits(case, teams, monkeypatch):
    expected = case.trained()
    set_budgets(monkeypatch, case)
    trainer = case.trainer()
    for step in range(case.n_steps):
        trainer._run._threads = (2, 1, 3, 16)[step % 4]
        case.fit(trainer, 1)
    assert_same_run(trainer, expected)
    assert max(teams.sizes) > 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threads", [2, 16])
def test_fit_interrupted_with_threads_gives_the_same_bits(case, threads, seed, many_cores, monkeypatch):
    expected = case.trained()
    teams = Teams(interrupts=0.3, seed=seed)
    monkeypatch.setattr(driver, "run_team", teams)
    rng = np.random.default_rng(seed)
    set_budgets(monkeypatch, case, lambda: 10 ** rng.uniform(-1.5, 0.5))
    trainer, n_interrupts = case.trainer(threads=threads), 0
    while trainer.n_steps < case.n_steps:
        try:
            case.fit(trainer, case.n_steps - trainer.n_steps)
        except KeyboardInterrupt:
            n_interrupts += 1
    assert state_of(trainer) == state_of(expected)  # the history has a row more for each epoch that was interrupted
    assert n_interrupts > 0
    assert max(teams.sizes) > 1


# --- in this process --------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(monkeypatch, many_cores):
    """A pool of its own, which may have 15 threads."""
    pool = workers._Pool()
    monkeypatch.setattr(workers, "_POOL", pool)
    return pool


def assert_serves(pool):
    """The pool has no more threads than it may, and one of them is free soon."""
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(SECONDS)
    assert 0 < pool._n_threads <= 15


def wait_until_idle(pool):
    """Wait until no thread of the pool does anything and nothing waits for one."""
    deadline = time.monotonic() + SECONDS
    while pool._tasks.qsize() > 0 or pool._idle.qsize() < pool._n_threads:
        assert time.monotonic() < deadline
        time.sleep(1e-3)


def test_fit_with_the_pool_gives_the_same_bits_and_leaves_it_idle(case, pool, monkeypatch):
    expected = case.trained()
    set_budgets(monkeypatch, case)
    for threads in (2, 3, 16):
        assert_same_run(case.fit(case.trainer(threads=threads)), expected)
    wait_until_idle(pool)
    assert_serves(pool)


def test_fit_with_a_busy_pool_goes_on_alone(case, pool, monkeypatch):
    expected = case.trained()
    set_budgets(monkeypatch, case)
    release = threading.Event()
    for _ in range(40):
        pool.submit(release.wait)
    assert_same_run(case.fit(case.trainer(threads=16)), expected)
    release.set()
    wait_until_idle(pool)


def test_fit_with_fewer_pool_threads_than_asked_for_gives_the_same_bits(case, pool, monkeypatch):
    expected = case.trained()
    set_budgets(monkeypatch, case)
    with monkeypatch.context() as patch:
        patch.setattr(workers, "available_cores", lambda: 2)
        assert_serves(pool)
    monkeypatch.setattr(pool, "_start", lambda: None)
    assert_same_run(case.fit(case.trainer(threads=16)), expected)
    assert pool._n_threads == 1
    wait_until_idle(pool)


def test_fit_without_a_single_thread_to_be_had_goes_on_alone(case, pool, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    expected = case.trained()
    set_budgets(monkeypatch, case)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert_same_run(case.fit(case.trainer(threads=3)), expected)
    assert pool._n_threads == pool._tasks.qsize() == 0  # nothing waits for a thread that does not exist
    assert_same_run(case.fit(case.trainer(threads=3)), expected)
    assert_serves(pool)


@pytest.mark.parametrize("moment", ["starting a thread", "submitting", "submitted"])
def test_fit_interrupted_before_it_starts_leaves_everything_whole(moment, pool, monkeypatch):
    case = CASES["several blocks"]
    expected = case.trained()
    set_budgets(monkeypatch, case)
    owner, name = {
        "starting a thread": (threading.Event, "wait"),  # for the thread to have started
        "submitting": (pool, "submit"),
        "submitted": (border, "train"),
    }[moment]
    original, n_calls = getattr(owner, name), 0

    def interrupted(*arguments):
        nonlocal n_calls
        if threading.current_thread() is threading.main_thread():
            n_calls += 1
            if n_calls == 3:
                raise KeyboardInterrupt
        return original(*arguments)

    interrupted.overloads = getattr(original, "overloads", None)  # a kernel is asked whether it has been compiled
    trainer = case.trainer(threads=4)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            case.fit(trainer)
    assert trainer.n_steps < case.n_steps
    case.fit(trainer, case.n_steps - trainer.n_steps)
    assert state_of(trainer) == state_of(expected)
    wait_until_idle(pool)


def test_helper_that_comes_after_everything_touches_nothing(case, pool, monkeypatch):
    expected = case.trained()
    set_budgets(monkeypatch, case)
    submitted = []
    monkeypatch.setattr(pool, "submit", lambda function, *arguments: submitted.append((function, arguments)))
    trainer = case.fit(case.trainer(threads=3))
    assert_same_run(trainer, expected)
    before = bits(trainer.model.params)
    del expected
    gc.collect()  # the programs have gone
    assert submitted
    for function, arguments in submitted:
        assert function(*arguments) == training.PAUSED
        sync = arguments[-1]
        assert sync[team.NEXT_INDEX] == sync[team.ARRIVALS] == sync[team.LEFT] == 0
    assert bits(trainer.model.params) == before


def test_fit_that_diverges_with_threads_raises_and_ends_all_calls(pool, monkeypatch):
    case = CASES["several blocks"]
    set_budgets(monkeypatch, case)
    steps = []
    for threads in (1, 3):
        trainer = case.trainer(threads=threads, optimizer=fastbp.SGD(1e20))
        with pytest.raises(fastbp.DivergenceError) as raised:
            case.fit(trainer)
        steps.append((str(raised.value), bits(trainer.model.params)))
    assert steps[0] == steps[1]
    wait_until_idle(pool)


def test_fit_of_labels_that_change_with_threads_raises_and_ends_all_calls(pool, monkeypatch):
    case = CASES["several blocks"]
    set_budgets(monkeypatch, case)
    y = case.y.copy()

    def spoil(step):
        if step > 5:
            y[:] = 99
        return 0.01

    trainer = case.trainer(threads=3, optimizer=fastbp.SGD(spoil))
    with pytest.raises(ValueError, match="y changed during the fit"):
        trainer.fit(case.x, y)
    assert np.isfinite(trainer.model.params).all()
    wait_until_idle(pool)


def test_fit_of_several_models_from_several_threads_gives_the_same_bits(case, pool, monkeypatch):
    expected = case.trained()
    set_budgets(monkeypatch, case)
    runs = [case.trainer(threads=2 + i % 3) for i in range(8)]
    callers = [threading.Thread(target=case.fit, args=(trainer,), daemon=True) for trainer in runs]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(SECONDS)
        assert not caller.is_alive()
    for trainer in runs:
        assert_same_run(trainer, expected)
    wait_until_idle(pool)


# --- in processes of their own ----------------------------------------------------------------------------------------


def train(threads, n_steps=60, **options):
    """Train something with tasks for several threads, for some tenths of a second; returns its trainer."""
    x, y = classes(2000, 40, 10)
    model = fastbp.MLP([40, 200, 200, 10], output="softmax", seed=1)
    trainer = fastbp.Trainer(model, batch_size=500, threads=threads, seed=3)
    trainer.fit(x, y, epochs=None, max_steps=n_steps, **options)
    return trainer


def lift_cap(n_cores=8):
    """As `many_cores`, for good."""
    workers.available_cores = lambda: n_cores
    pacing._FIRST_TRIAL = np.inf


PRELUDE = """
import os, signal, subprocess, sys, threading, time, warnings
import fastbp
from fastbp import driver, workers
from problems import bits, state_of
from test_threads import lift_cap, train

lift_cap()
warnings.filterwarnings("ignore", category=DeprecationWarning)  # of a fork of a process with threads
"""


def run_script(code):
    """Run it in a process of its own, which must end by itself, without an error or a word about one."""
    folders = [str(Path(__file__).parent), str(Path(fastbp.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        if sys.platform != "win32":
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.kill()
        process.communicate()
        raise
    assert (errors, process.returncode) == ("", 0)
    return output.split()


def test_fit_on_a_loaded_machine_gives_the_same_bits():
    output = run_script(
        """
expected = state_of(train(1))
spinners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * os.cpu_count())]
try:
    print([state_of(train(threads)) == expected for threads in (2, 3, 8, "auto")])
finally:
    for spinner in spinners:
        spinner.kill()
        spinner.wait()
"""
    )
    assert output == ["[True,", "True,", "True,", "True]"]


@needs_fork
@pytest.mark.parametrize("moment", ["before", "after", "during"])
def test_fit_in_a_forked_child_gives_the_same_bits(moment):
    # The child ends in the regular way too: sys.exit, not os._exit.
    output = run_script(
        f"""
moment = {moment!r}
expected = state_of(train(1))
if moment == "after":
    train(3)
if moment == "during":
    busy = threading.Thread(target=train, args=(3, 300))
    busy.start()
    while workers._POOL._n_threads == 0:
        time.sleep(1e-3)
children = []
for _ in range(5):
    child = os.fork()
    if child == 0:
        sys.exit(0 if state_of(train(3)) == expected else 1)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children])
print(state_of(train(3)) == expected)
if moment == "during":
    busy.join()
"""
    )
    assert output == ["[0,", "0,", "0,", "0,", "0]", "True"]


@needs_fork
def test_fit_in_a_child_forked_while_another_thread_compiles_gives_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    output = run_script(
        """
from fastbp._jit.ledger import ledger

compiling = threading.Thread(target=train, args=(1,))
compiling.start()
while ledger._depth == 0:
    time.sleep(1e-3)
time.sleep(0.1)
child = os.fork()
if child == 0:
    print(state_of(train(3)) == state_of(train(1)), flush=True)
    sys.exit()
print(os.waitpid(child, 0)[1])
"""
    )
    assert output == ["True", "0"]


@pytest.mark.parametrize("is_daemon", [True, False])
@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.2])
def test_exit_in_mid_fit_ends_the_process(is_daemon, seconds):
    # The main thread ends. The process then waits for threads that are no daemons, which go on training.
    output = run_script(
        f"""
def fit():
    train(3, {10**7 if is_daemon else 300})
    print("trained", flush=True)

expected = train(1, 1)
thread = threading.Thread(target=fit, daemon={is_daemon})
thread.start()
time.sleep({seconds})
"""
    )
    assert output == ([] if is_daemon else ["trained"])


def test_exit_in_mid_fit_other_threads_keep_their_helpers():
    output = run_script(
        """
sizes = []

def run_team(n_workers, call):
    from fastbp.kernels import team

    def keep(worker, sync):
        status = call(worker, sync)
        if worker == 0 and n_workers > 1 and not threading.main_thread().is_alive():
            sizes.append(int(sync[team.N_WORKERS]))
        return status

    return workers.run_team(n_workers, keep)

def fit():
    threading.main_thread().join()
    for _ in range(20):
        train(2, 300)
        if max(sizes, default=0) == 2:
            break
    print(max(sizes))

driver.run_team = run_team
threading.Thread(target=fit).start()
"""
    )
    assert output == ["2"]


@pytest.mark.skipif(sys.platform == "win32", reason="pages are unmapped there in another way")
def test_helper_that_comes_when_all_is_over_reads_nothing_that_was_freed():
    # The memory of each program lies on pages of its own, which are unmapped when it is freed; helpers come only then.
    output = run_script(
        """
import gc, mmap
from fastbp import program, sources
import numpy as np
import fastbp

class Paged:
    def __getattr__(self, name):
        return getattr(np, name)

    def array(self, values, dtype=None):
        source = np.array(values, dtype)
        table = np.frombuffer(mmap.mmap(-1, mmap.PAGESIZE), source.dtype, source.size).reshape(source.shape)
        table[...] = source
        return table

def on_pages(n):
    return np.frombuffer(mmap.mmap(-1, n), np.uint8)

late = []

class Late:
    def submit(self, function, *arguments):
        late.append((function, arguments))

workers._POOL, workers.available_cores, sources.np, program.aligned_bytes = Late(), lambda: 2, Paged(), on_pages
x = np.random.default_rng(0).standard_normal((4096, 300)).astype(np.float32)
model = fastbp.MLP([300, 512, 1], seed=0)
model.fit(x, x[:, 0], batch_size=1024, epochs=20, threads=2, seed=0)
del model, x
gc.collect()
print(len(late) > 0)
for function, arguments in late:
    helper = threading.Thread(target=function, args=arguments)
    helper.start()
    helper.join()
del late[:], function, arguments
print("survived")
"""
    )
    assert output == ["True", "survived"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("threads", [1, 2, 8, "auto"])
def test_interrupt_with_threads_leaves_a_whole_step(threads):
    output = run_script(
        f"""
from test_threads import interrupted

print(*interrupted({threads!r}))
"""
    )
    assert output == ["True", "True"]


def interrupted(threads):
    """Train until Ctrl-C; return whether it took some steps, and whether its parameters are those of whole steps."""
    x, y = classes(2000, 40, 10)

    def make():
        model = fastbp.MLP([40, 200, 200, 10], output="softmax", seed=1)
        return fastbp.Trainer(model, batch_size=500, threads=threads, seed=3)

    make().fit(x, y, epochs=1)  # compiled
    trainer = make()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        trainer.fit(x, y, epochs=None, max_steps=10**9)
    except KeyboardInterrupt:
        timer.join()
    again = make()
    again.fit(x, y, epochs=None, max_steps=trainer.n_steps)
    return trainer.n_steps > 0, state_of(trainer) == state_of(again)


# --- how many ---------------------------------------------------------------------------------------------------------


def test_workers_for_follows_wish_cores_and_cost(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 4)
    cheap, dear = 1000, 10**9
    assert [workers.workers_for(threads, cheap) for threads in (1, 2, 4, 5, "auto")] == [1, 2, 4, 4, 1]
    assert [workers.workers_for(threads, dear) for threads in (1, 2, 4, 5, "auto")] == [1, 2, 4, 4, 4]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this platform has no affinity masks")
def test_available_cores_are_those_of_the_affinity_mask(monkeypatch):
    monkeypatch.setattr(workers, "_quota", lambda: np.inf)
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert workers.available_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)
    assert workers.available_cores() == len(cores)


@pytest.mark.parametrize(("quota", "expected"), [(0.5, 1), (1.0, 1), (2.7, 2), (8.0, 8), (np.inf, 16)])
def test_available_cores_are_within_the_quota(quota, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(workers, "_quota", lambda: quota)
    assert workers.available_cores() == expected


def quota_of(folder, membership, files):
    """The quota that is read where these are the control groups' files."""
    (folder / "cgroup").write_text(membership)
    for name, content in files.items():
        path = folder / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return workers._quota(folder / "cgroup", folder / "mounted")


ONE = "0::/\n"
NESTED = "0::/user.slice/job.scope\n"
FIRST_VERSION = "5:cpuset:/\n4:cpu,cpuacct:/docker/4f1\n1:name=systemd:/\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("", {}, np.inf),
        (ONE, {}, np.inf),
        (ONE, {"cpu.max": "max 100000\n"}, np.inf),
        (ONE, {"cpu.max": "150000 100000\n"}, 1.5),
        (ONE, {"cpu.max": "nonsense\n"}, np.inf),
        (ONE, {"cpu.max": ""}, np.inf),
        (NESTED, {"cpu.max": "400000 100000\n"}, 4.0),
        (NESTED, {"user.slice/cpu.max": "200000 100000\n", "user.slice/job.scope/cpu.max": "max 100000\n"}, 2.0),
        (NESTED, {"user.slice/cpu.max": "600000 100000\n", "user.slice/job.scope/cpu.max": "300000 100000\n"}, 3.0),
        ("0::/../other\n", {"cpu.max": "max 100000\n"}, np.inf),
        ("0::/with:colon\n", {"with:colon/cpu.max": "250000 100000\n"}, 2.5),
        (FIRST_VERSION, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, np.inf),
        (FIRST_VERSION, {"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.5),
        (FIRST_VERSION, {"cpu/docker/4f1/cpu.cfs_quota_us": "50000\n"}, np.inf),
    ],
)
def test_quota_is_the_least_of_the_groups(tmp_path, membership, files, expected):
    assert quota_of(tmp_path, membership, files) == expected


def test_quota_without_control_groups_is_infinite(tmp_path):
    assert workers._quota(tmp_path / "cgroup", tmp_path) == np.inf
