"""A network inside compiled functions: the same bits, statuses instead of errors, no byte written that must not be."""

import copy
import ctypes
import gc
import os
import pickle
import subprocess
import sys
import threading
import weakref

import numba
import numpy as np
import pytest
from numba import njit, prange

import fastbp
from cases import ACTIVATIONS, DTYPES, OUTPUTS
from fastbp import embed
from fastbp.kernels import overloads
from fastbp.kernels.embedding import _BUSY_ELEMENT
from fastbp.kernels.handles import HANDLE
from guards import guarded, needs_guard_pages
from problems import bits

SIZES = [(1, 1), (3, 2), (4, 33, 7), (7, 3, 8, 7, 5), (33, 70, 40, 3), (1100, 9, 4), (5, 1300, 4)]
TOO_WIDE = (3, 3000, 2500, 2)  # for the stack


@njit(nogil=True)
def predict(net, x, out):
    return embed.predict(net, x, out)


@njit(nogil=True)
def vjp(net, x, d_out, d_x):
    return embed.vjp(net, x, d_out, d_x)


@njit(nogil=True)
def jvp(net, x, t_x, t_out):
    return embed.jvp(net, x, t_x, t_out)


@njit(fastmath=True)
def predict_with_fastmath(net, x, out):
    return embed.predict(net, x, out)


@njit(parallel=True)
def predict_in_parallel(net, x, out):
    for i in prange(x.shape[0]):
        embed.predict(net, x[i], out[i])


def model_of(sizes, activation="tanh", output="identity", dtype="float32"):
    output = "identity" if output == "softmax" and sizes[-1] == 1 else output
    model = fastbp.MLP(list(sizes), activation, output, dtype=dtype, seed=0)
    model.params[:] += 0.1 * np.random.default_rng(1).standard_normal(model.n_params).astype(dtype)
    return model


def rows(n, width, dtype="float32", seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bits_are_those_from_python(activation, output, dtype):
    for sizes in SIZES[1:4]:
        model = model_of(sizes, activation, output, dtype)
        net, n_in, n_out = model.compiled(), sizes[0], sizes[-1]
        for n in (1, 2, 37):
            x, t_x, d_out = rows(n, n_in, dtype), rows(n, n_in, dtype, 1), rows(n, n_out, dtype, 2)
            out, d_x, t_out = np.full((n, n_out), 7, dtype), np.full((n, n_in), 7, dtype), np.full((n, n_out), 7, dtype)
            assert predict(net, x, out) == vjp(net, x, d_out, d_x) == jvp(net, x, t_x, t_out) == embed.OK
            assert bits(out) == bits(model.predict(x)), (sizes, n)
            assert bits(d_x) == bits(model.vjp(x, d_out)), (sizes, n)
            assert bits(t_out) == bits(model.jvp(x, t_x)), (sizes, n)
        row, alone, tangent, gradient = np.empty(n_out, dtype), x[:1], np.empty(n_out, dtype), np.empty(n_in, dtype)
        assert predict(net, x[0], row) == embed.OK
        assert vjp(net, x[0], d_out[0], gradient) == jvp(net, x[0], t_x[0], tangent) == embed.OK
        assert bits(row) == bits(out[0])
        assert bits(gradient) == bits(model.vjp(alone, d_out[:1]))
        assert bits(tangent) == bits(t_out[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [*SIZES, TOO_WIDE])
def test_bits_of_any_size_are_those_from_python(sizes, dtype):
    for activation in ("relu", "gelu"):
        model = model_of(sizes, activation, "sigmoid", dtype)
        net, n_in, n_out = model.compiled(), sizes[0], sizes[-1]
        for n in (1, 2, 150):
            x, d_out = rows(n, n_in, dtype), rows(n, n_out, dtype, 2)
            out, d_x, t_out = np.empty((n, n_out), dtype), np.empty((n, n_in), dtype), np.empty((n, n_out), dtype)
            assert predict(net, x, out) == vjp(net, x, d_out, d_x) == jvp(net, x, x, t_out) == embed.OK
            expected = model.predict(x), model.vjp(x, d_out), model.jvp(x, x)
            assert [bits(array) for array in (out, d_x, t_out)] == [bits(array) for array in expected]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ["identity", "tanh", "relu"])
def test_tiny_outputs_are_zero_as_from_python(activation, dtype):
    model, tiny = model_of((3, 9, 20), activation, dtype=dtype), 1e-25 if dtype == "float32" else 1e-200
    model.params[:] *= tiny
    net, out, directions = model.compiled(), np.empty(20, dtype), np.empty(20, dtype)
    for x in rows(20, 3, dtype):
        assert predict(net, x, out) == jvp(net, x, x, directions) == embed.OK
        assert bits(out) == bits(model.predict(x[np.newaxis]))
        assert bits(directions) == bits(model.jvp(x[np.newaxis], x[np.newaxis]))
        assert not directions.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_with_fastmath_in_parallel_and_in_threads_are_those_from_python(dtype):
    model = model_of((4, 33, 7), "tanh", "softmax", dtype)
    net, x = model.compiled(), rows(4000, 4, dtype)
    expected = model.predict(x)
    out = np.empty_like(expected)
    assert predict_with_fastmath(net, x, out) == embed.OK
    assert bits(out) == bits(expected)
    out[:] = 0
    predict_in_parallel(net, x, out)  # one handle for all: single samples
    assert bits(out) == bits(expected)
    out[:] = 0
    nets, statuses = model.compiled(4), []

    def work(thread):
        for i in range(thread, 4000, 4):
            statuses.append(predict(nets[thread] if i % 8 < 4 else net, x[i], out[i]))

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(statuses) == {embed.OK}
    assert bits(out) == bits(expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", DTYPES)
def test_inputs_of_any_strides_and_float_dtype_are_read_as_they_lie(given, dtype):
    model = model_of((4, 9, 3), dtype=dtype)
    net, x = model.compiled(), rows(12, 4, given)
    raw = np.zeros(x.nbytes + 1, np.uint8)
    unaligned = raw[1:].view(given).reshape(x.shape)
    unaligned[...] = x
    wide = np.zeros((24, 9), given)
    wide[::2, 1:9:2] = x
    layouts = [x, np.asfortranarray(x), x[::-1], x[:, ::-1], x[::3], wide[::2, 1:9:2], unaligned]
    layouts += [np.broadcast_to(x[2], (5, 4)), np.broadcast_to(x[:1, :1], (3, 4))]
    for array in layouts:
        out, with_d = np.empty((len(array), 3), dtype), np.empty((len(array), 4), dtype)
        expected = model.predict(np.array(array))
        assert predict(net, array, out) == embed.OK
        assert bits(out) == bits(expected)
        assert vjp(net, array, out[:, ::-1], with_d) == embed.OK
        assert bits(with_d) == bits(model.vjp(np.array(array), out[:, ::-1].copy()))
        for i in range(len(array)):
            assert predict(net, array[i], out[i]) == embed.OK
        assert bits(out) == bits(expected)


def test_wrong_shapes_and_overlaps_are_statuses_and_nothing_is_written():
    model = model_of((4, 9, 3))
    net, x, out = model.compiled(), rows(5, 4), np.full((5, 3), 7, np.float32)
    memory = np.full(100, 7, np.float32)
    cases = [
        (predict(net, x[:, :3], out), embed.X_SHAPE),
        (predict(net, x[0, :3], out[0]), embed.X_SHAPE),
        (predict(net, x[:4], out), embed.OUT_SHAPE),
        (predict(net, x, np.full((5, 4), 7, np.float32)), embed.OUT_SHAPE),
        (predict(net, x[0], memory[:2]), embed.OUT_SHAPE),
        (vjp(net, x, out[:4], np.empty((5, 4), np.float32)), embed.Y_SHAPE),
        (vjp(net, x, x, np.empty((5, 4), np.float32)), embed.Y_SHAPE),
        (vjp(net, x, out, np.empty((5, 3), np.float32)), embed.OUT_SHAPE),
        (jvp(net, x, out, out), embed.Y_SHAPE),
        (predict(net, memory[:4], memory[3:6]), embed.OVERLAP),
        (predict(net, memory[5:1:-1], memory[2:5]), embed.OVERLAP),
        (predict(net, memory[:20].reshape(5, 4), memory[19:34].reshape(5, 3)), embed.OVERLAP),
        (vjp(net, x, memory[:15].reshape(5, 3), memory[14:34].reshape(5, 4)), embed.OVERLAP),
        (predict(net, x[0], model.params[2:5]), embed.OVERLAP),
    ]
    for status, expected in cases:
        assert status == expected
    assert (out == 7).all()
    assert (memory == 7).all()
    assert predict(net, memory[:4], memory[4:7]) == embed.OK  # side by side


def test_no_rows_are_predicted_as_no_rows():
    net = model_of((4, 9, 3)).compiled()
    assert predict(net, np.empty((0, 4), np.float32), np.empty((0, 3), np.float32)) == embed.OK


def test_wrong_types_are_typing_errors_that_name_the_argument():
    net, x, out = model_of((4, 9, 3)).compiled(), rows(5, 4), np.empty((5, 3), np.float32)
    read_only = out.view()
    read_only.flags.writeable = False
    for arguments, message in [
        ((net, x, out.astype(float)), "embed.predict: out must be a writable, C-contiguous array of the network's"),
        ((net, x, np.asfortranarray(out)), "embed.predict: out must be a writable, C-contiguous"),
        ((net, x, read_only), "embed.predict: out must be a writable, C-contiguous"),
        ((net, x.astype(int), out), "embed.predict: x must be of float32 or float64"),
        ((net, x[0], out), "embed.predict: out must have as many dimensions as x"),
        ((net, x[np.newaxis], out), "embed.predict: x must be an array of 1 or 2 dimensions"),
        ((net, 1.0, out), "embed.predict: x must be an array"),
        ((x, x, out), r"embed.predict: the first argument must be made by MLP.compiled\(\), or be one of the rows"),
        (
            (model_of((4, 9, 3)).compiled(2), x, out),
            r"embed.predict: the first argument must be made by MLP.compiled\(\), or be one of the rows",
        ),
    ]:
        with pytest.raises(numba.TypingError, match=message):
            predict(*arguments)


def test_handle_that_was_copied_pickled_cut_or_is_of_another_version_is_a_status():
    model = model_of((4, 9, 3))
    net, x, out = model.compiled(), rows(1, 4)[0], np.full(3, 7, np.float32)
    foreign = np.zeros(40, np.int64).view([(overloads.field_name("network", "float32")[:-4] + "beef", np.int64)])
    for bad in (net.copy(), copy.deepcopy(net), pickle.loads(pickle.dumps(net)), net[1:], net[:2], net[:0], foreign):
        assert predict(bad, x, out) == embed.MOVED
    assert (out == 7).all()
    assert predict(net, x, out) == embed.OK


def test_handles_are_read_only_and_have_the_shape_that_was_asked_for():
    model = model_of((4, 9, 3))
    assert model.compiled().shape == (HANDLE.itemsize // 8,)
    assert model.compiled(1).shape == (1, HANDLE.itemsize // 8)
    assert model.compiled(3).shape == (3, HANDLE.itemsize // 8)
    assert not model.compiled(3).flags.writeable
    with pytest.raises(ValueError, match="n must be a positive integer"):
        model.compiled(0)


def test_handle_keeps_the_model_and_is_freed_with_its_last_view():
    model = model_of((4, 9, 3))
    net, x, out, kept = model.compiled(2)[1], rows(1, 4)[0], np.empty(3, np.float32), weakref.ref(model)
    expected = model.predict(x[np.newaxis])[0]
    del model
    gc.collect()
    assert kept() is not None
    assert predict(net, x, out) == embed.OK
    assert bits(out) == bits(expected)
    del net
    gc.collect()
    assert kept() is None


def test_handle_sees_parameters_that_are_changed_later():
    model = model_of((4, 9, 3))
    net, x, out = model.compiled(), rows(1, 4), np.empty((1, 3), np.float32)
    model.params[:] *= 0.5
    assert predict(net, x, out) == embed.OK
    assert bits(out) == bits(model.predict(x))


def _set_busy(net, value):
    """Do as if another thread were at work with a handle, or were not any more."""
    ctypes.c_int64.from_address(net.ctypes.data + 8 * _BUSY_ELEMENT).value = value


def test_handle_in_use_is_a_status_for_rows_and_serves_single_samples():
    model = model_of((4, 9, 3))
    net, x, out = model.compiled(), rows(5, 4), np.full((5, 3), 7, np.float32)
    _set_busy(net, 1)
    assert predict(net, x, out) == embed.BUSY
    assert (out == 7).all()
    assert predict(net, x[0], out[0]) == embed.OK
    _set_busy(net, 0)
    assert predict(net, x, out) == embed.OK


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_forked_child_finds_its_handles_free():
    net, x, out = model_of((4, 9, 3)).compiled(), rows(5, 4), np.empty((5, 3), np.float32)
    assert predict(net, x, out) == embed.OK
    _set_busy(net, 1)
    child = os.fork()
    if child == 0:
        os._exit(predict(net, x, out))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == embed.OK
    assert predict(net, x, out) == embed.BUSY


@needs_guard_pages
@pytest.mark.parametrize("at_start", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_beside_guard_pages_are_not_left(dtype, at_start):
    for sizes in SIZES:
        model = model_of(sizes, dtype=dtype)
        net, n_in, n_out = model.compiled(), sizes[0], sizes[-1]
        for n in (1, 3, 33):
            x, t_x, d_out = (guarded(rows(n, width, dtype), at_start) for width in (n_in, n_in, n_out))
            out, d_x, t_out = (guarded(rows(n, width, dtype), at_start) for width in (n_out, n_in, n_out))
            assert predict(net, x, out) == vjp(net, x, d_out, d_x) == jvp(net, x, t_x, t_out) == embed.OK
            assert predict(net, x[-1], out[-1]) == vjp(net, x[-1], d_out[-1], d_x[-1]) == embed.OK
            assert jvp(net, x[0], t_x[0], t_out[0]) == embed.OK


def test_random_calls_give_what_python_gives():
    rng = np.random.default_rng(0)
    models = [
        model_of((4, 9, 3), "tanh"),
        model_of((2, 40, 40, 1), "relu", dtype="float64"),
        model_of((9, 5, 17), "silu"),
    ]
    nets = [model.compiled() for model in models]
    for call in range(30_000):
        which, n = int(rng.integers(3)), int(rng.integers(0, 40))
        model, net = models[which], nets[which]
        (n_in, _, n_out), wide = (model.sizes[0], 0, model.sizes[-1]), rng.random() < 0.05
        x = rng.standard_normal((n, n_in + wide)).astype(rng.choice(DTYPES))[:: rng.choice([1, -1, 2])]
        n = len(x) + int(rng.random() < 0.05)
        second = rng.standard_normal((len(x), (n_in, n_out, n_in)[call % 3]))
        out = np.full((n, (n_out, n_in, n_out)[call % 3]), 7, model.dtype)
        arguments = (x, out) if call % 3 == 0 else (x, second, out)
        status = (predict, vjp, jvp)[call % 3](net, *arguments)
        assert status == (embed.X_SHAPE if wide else embed.OK if n == len(x) else embed.OUT_SHAPE)
        if status != embed.OK or n == 0:
            assert (out == 7).all()
        elif call % 3 == 0:
            assert bits(out) == bits(model.predict(x))
        else:
            assert bits(out) == bits((model.vjp, model.jvp)[call % 3 - 1](x, second))


def test_functions_may_be_called_from_python_too():
    model = model_of((4, 9, 3))
    net, x, out = model.compiled(), rows(5, 4), np.empty((5, 3), np.float32)
    assert embed.predict(net, x, out) == embed.OK
    assert bits(out) == bits(model.predict(x))
    assert "x must have shape" in embed.message(embed.predict(net, x[:, :2], out))
    assert set(embed._MESSAGES) == set(range(len(embed._MESSAGES)))
    assert embed.message(np.int64(embed.OK)) == "ok"
    with pytest.raises(ValueError, match="status must be one of 0 to 14, got 99"):
        embed.message(99)


def test_handles_work_in_tuples_lists_and_classes_and_a_global_one_is_a_copy():
    model = model_of((4, 9, 3))
    net, x, out = model.compiled(), rows(1, 4)[0], np.empty(3, np.float32)
    expected, listed = bits(model.predict(x[np.newaxis])), numba.typed.List()
    listed.append(net)

    @njit
    def first(nets, x, out):
        return embed.predict(nets[0], x, out)

    @njit
    def frozen(x, out):
        return embed.predict(net, x, out)

    @numba.experimental.jitclass([("net", numba.typeof(net))])
    class Agent:
        def __init__(self, net):
            self.net = net

        def act(self, x, out):
            return embed.predict(self.net, x, out)

    for call in (lambda: first((net, 1), x, out), lambda: first(listed, x, out), lambda: Agent(net).act(x, out)):
        out[:] = 0
        assert call() == embed.OK
        assert bits(out) == expected
    assert frozen(x, out) == embed.MOVED


ALLOCATIONS = """
import numpy as np
from numba import njit
from numba.core.runtime import rtsys
import fastbp
from fastbp import embed

@njit(nogil=True)
def simulate(net, x, out, d_x, n):
    status = 0
    for _ in range(n):
        status |= embed.predict(net, x, out)
        status |= embed.vjp(net, x, out, d_x)
        status |= embed.jvp(net, x, d_x, out)
    return status

model = fastbp.MLP([4, 9, 3], seed=0)
net, x = model.compiled(), np.ones((3, 4), np.float32)
out, d_x = np.empty((3, 3), np.float32), np.empty((3, 4), np.float32)
for arrays in ((x, out, d_x), (x[0], out[0], d_x[0])):
    assert simulate(net, *arrays, 1) == 0
    before = rtsys.get_allocation_stats()
    assert simulate(net, *arrays, 1000) == 0
    after = rtsys.get_allocation_stats()
    print(after.alloc - before.alloc, after.mi_alloc - before.mi_alloc)
"""


def test_calls_allocate_nothing():
    environment = os.environ | {"NUMBA_NRT_STATS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATIONS], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    # Unboxing an array takes a header each, outside the loop.
    assert all(int(number) <= 5 for number in done.stdout.split()), done.stdout


AT_EXIT = """
import threading
import numpy as np
from numba import njit
import fastbp
from fastbp import embed

def main():
    trainer = fastbp.Trainer(fastbp.MLP([4, 9, 3], seed=0))
    net, learner = trainer.model.compiled(), trainer.compiled(8)
    x, y, out = np.zeros((8, 4)), np.zeros((8, 3)), np.zeros((8, 3), np.float32)

    @njit(nogil=True)
    def simulate(net, learner, x, y, out, n):
        status = 0
        for _ in range(n):
            status |= embed.predict(net, x, out) | embed.train_step(learner, x, y)
        return status

    assert simulate(net, learner, x, y, out, 10) == embed.OK
    threading.Thread(target=simulate, args=(net, learner, x, y, out, 10**12), daemon=True).start()

main()
"""


def test_interpreter_may_end_while_a_thread_simulates():
    done = subprocess.run([sys.executable, "-c", AT_EXIT], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
