"""Models and runs as a record of plain values with arrays, and back: what `archive` writes and reads.

A file holds what a pickle of the same would, and nothing else comes back from it: each part is named here, and checked
before a kernel may read it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fastbp import _jit, checks
from fastbp._version import __version__
from fastbp.architecture import Architecture, architecture_of
from fastbp.archive import Archive
from fastbp.buffers import owned
from fastbp.codec import OWN, decoded, encoded
from fastbp.diagnosis import DataFacts, LayerFacts
from fastbp.errors import CheckpointError, warn
from fastbp.fits import FitRecord
from fastbp.health import Health
from fastbp.history import History, check_metrics
from fastbp.kernels.tables import RULE, TOTALS
from fastbp.network import Network
from fastbp.optimizers import Optimizer
from fastbp.run import Run
from fastbp.scaling import Learnt, Scaling, Spread
from fastbp.shaping import Group, LayerShaping, Shaping
from fastbp.state import NO_LIMIT, Buffers, Position, RuleMemory, RunState, Seen, SetAside, Snapshot
from fastbp.stopping import check_rules

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "FORMAT",
    "check_kind",
    "in_present_format",
    "model_archive",
    "model_options",
    "network_from",
    "resumed_run",
    "run_archive",
    "run_from",
    "run_options",
]

# 2: models that standardize.
FORMAT = 2
_PROGRAM = "fastbp"

Array: TypeAlias = npt.NDArray[Any]
Custom: TypeAlias = "Mapping[str, object]"

# Of a cursor what says where a run stands; all else is 0 between two steps.
_KEPT = ("step", "epoch", "position", "stop_rule")


class _Parts(NamedTuple):
    """What is being written: arrays, each under its name, which its place in the record has too."""

    arrays: dict[str, Array]

    def put(self, name: str, array: Array) -> str:
        """Take an array; return its name."""
        self.arrays[name] = array
        return name

    def snapshot(self, name: str, snapshot: Snapshot) -> dict[str, str]:
        """Take the arrays of a snapshot."""
        return {
            "params": self.put(f"{name}.params", snapshot.params),
            "moments": self.put(f"{name}.moments", snapshot.moments),
        }


class _Source(NamedTuple):
    """What is being read."""

    record: dict[str, Any]
    arrays: dict[str, Array]
    custom: Custom

    def value(self, part: dict[str, Any], name: str, wanted: type | tuple[type, ...] = object) -> Any:
        """Return a value of a part of the record."""
        if name not in part:
            raise CheckpointError(f"the record has no {name!r}")
        return decoded(part[name], self.custom, wanted)

    def part(self, part: dict[str, Any], name: str) -> dict[str, Any]:
        """Return a part of a part of the record."""
        if not isinstance(part.get(name), dict):
            raise CheckpointError(f"the record has no part {name!r}")
        found: dict[str, Any] = part[name]
        return found

    def natural(self, part: dict[str, Any], name: str) -> int:
        """Return a number that counts something."""
        number: int = self.value(part, name, int)
        if not 0 <= number <= NO_LIMIT:
            raise CheckpointError(f"the record has {name} = {number}")
        return number

    def array(self, name: object, shape: tuple[int, ...], dtype: npt.DTypeLike) -> Array:
        """Return an array of this shape and dtype."""
        array = self.arrays.get(str(name))
        if array is None or array.shape != shape or array.dtype != dtype:
            described = None if array is None else (array.shape, str(array.dtype))
            raise CheckpointError(f"{name} should be {shape} of {np.dtype(dtype)}, got {described}")
        return array

    def snapshot(self, part: dict[str, Any], buffers: Buffers) -> Snapshot:
        """Return a snapshot of such buffers."""
        params, moments = buffers.params, buffers.moments
        return Snapshot(
            owned(self.array(part.get("params"), params.shape, params.dtype)),
            owned(self.array(part.get("moments"), moments.shape, moments.dtype)),
        )


def model_archive(network: Network, seed: int) -> Archive:
    """Return what a file of a model has."""
    parts = _Parts({})
    history = None if network.history is None else _history_record(parts, network.history)
    record = _head("model") | {"model": model_options(network), "seed": seed, "history": history}
    record["scaling"] = _scaling_record(parts, network.scaling)
    parts.put("params", network.params)
    return Archive(record, parts.arrays)


def run_archive(run: Run, seed: int) -> Archive:
    """Return what a file of a trainer has: the run at the beginning of its present step. seed : of the model."""
    state, parts = run.__getstate__(), _Parts({})
    params, moments, set_aside, first_step = state["_buffers"]
    parts.put("params", params)
    parts.put("moments", moments)
    position, outside, memory = state["state"]
    shown = (
        {} if set_aside is None else {name: parts.snapshot(name, getattr(set_aside, name)) for name in SetAside._fields}
    )
    trainer = {
        "optimizer": encoded(state["_rule"], "optimizer"),
        "seed": state["seed"],
        "position": _position_record(parts, "position", position),
        "outside": _position_record(parts, "outside", outside),
        "memory": _memory_record(parts, memory),
        "first_step": first_step,
        "set_aside": shown,
        "callback_memory": encoded(tuple(state["callback_memory"].items()), "what a callback remembers"),
        "is_last": state["_is_last"],
        "fit": encoded(state["fit_record"], "the fit"),
    }
    record = _head("trainer") | {"model": model_options(run.network), "seed": seed, "options": run_options(run)}
    record["scaling"] = _scaling_record(parts, run.network.scaling)
    return Archive(record | {"trainer": trainer, "history": _history_record(parts, state["history"])}, parts.arrays)


def model_options(network: Network) -> dict[str, Any]:
    """Return what a model is apart from its numbers, as plain values."""
    architecture = network.architecture
    return {
        "sizes": list(architecture.layout.sizes),
        "activations": encoded(architecture.activations, "activation"),
        "loss": encoded(architecture.loss, "loss"),
        "dtype": architecture.dtype.name,
        "standardize": architecture.standardizes_x,
        "standardize_y": architecture.standardizes_y,
    }


def run_options(run: Run) -> dict[str, Any]:
    """Return what a trainer is apart from its optimizer, its seed and its numbers, as plain values."""
    state = run.__dict__
    shaping = state["_shaping"]
    return {
        "batch_size": state["_batch_size"],
        "shuffle": state["_shuffle"],
        "drop_last": state["_drop_last"],
        "threads": state["_threads"],
        "use_ema": state["_use_ema"],
        "shaping": encoded(shaping._replace(seed=0), "what shapes a step"),
    }


def resumed_run(run: Run, archive: Archive) -> Run:
    """Return the run in a file, with a fit to complete, if it has the same options as this one.

    Raises
    ------
    CheckpointError
        If it is not, naming what is different.
    """
    if check_kind(archive) != "trainer":
        raise CheckpointError("the file is of a model: a fit goes on from the file of a trainer")
    archive = in_present_format(archive)
    own = {
        own.name: own
        for own in (*run.network.architecture.activations, run.network.architecture.loss, run.optimizer)
        if isinstance(own, OWN)
    }
    there, here = archive.record, {"model": model_options(run.network), "options": run_options(run)}
    for part, options in here.items():
        for name, value in options.items():
            found = there.get(part, {}).get(name) if isinstance(there.get(part), dict) else None
            if found != value and name == "shaping":
                raise CheckpointError(
                    "the file is of another run: regularize, clip_norm, clip_value, ema or rate_factors are others"
                )
            if found != value and name != "threads":
                raise CheckpointError(f"the file is of another run: {name} is {found!r} there, and {value!r} here")
    network, _ = network_from(archive, own)
    other = run_from(archive, network, own)
    if other.fit_record is None:
        raise CheckpointError("the file is of a trainer without a fit to complete: use trainer = fastbp.load(path)")
    if other.fit_record.optimizer != run.optimizer:
        raise CheckpointError(
            f"the file is of another run: the optimizer was {other.fit_record.optimizer!r}, "
            f"here it is {run.optimizer!r}"
        )
    return other


def check_kind(archive: Archive) -> str:
    """Return whether a file is of a model or a trainer; warn if another machine or library has written it.

    Raises
    ------
    CheckpointError
        If it is of another program or of a format that this version does not know.
    """
    record = archive.record
    if record.get("program") != _PROGRAM:
        raise CheckpointError("no file of fastbp's")
    if type(record.get("format")) is not int or not 1 <= record["format"] <= FORMAT:
        raise CheckpointError(f"format {record.get('format')!r}; fastbp {__version__} reads 1 to {FORMAT}")
    kind = record.get("kind")
    if kind not in ("model", "trainer"):
        raise CheckpointError(f"of an unknown kind, {kind!r}")
    environment, present = record.get("environment"), _environment()
    if environment != present and isinstance(environment, dict):
        changed = [
            f"{name} {environment.get(name)}, now {present.get(name)}"
            for name in sorted({*environment, *present})
            if environment.get(name) != present.get(name)
        ]
        listed = "; ".join(changed)
        warn(f"the file was written with {listed}: a run that goes on may have other last bits")
    return str(kind)


def in_present_format(archive: Archive) -> Archive:
    """Return what a file of an older format, whose kind has been checked, would have in the present one."""
    record = archive.record
    if record["format"] < 2 and isinstance(record.get("model"), dict):
        plain = {"standardize": False, "standardize_y": False}
        record = record | {"model": record["model"] | plain, "scaling": None}
    return archive._replace(record=record)


def network_from(archive: Archive, custom: Custom) -> tuple[Network, int]:
    """Return the network in a file, and the seed of its model."""
    source = _Source(archive.record, archive.arrays, custom)
    options = source.part(archive.record, "model")
    architecture = _architecture_from(source, options)
    n_params = architecture.layout.n_params
    params = source.array("params", (n_params,), architecture.dtype)
    network = Network(architecture, params)
    network.scaling.put(_learnt_from(source, network.scaling))
    if archive.record.get("kind") == "model" and archive.record.get("history") is not None:
        network.history = _history_from(source, source.part(archive.record, "history"), network)
    return network, checks.seed_of(source.value(archive.record, "seed", int))


def run_from(archive: Archive, network: Network, custom: Custom) -> Run:
    """Return the run in a trainer's file, on the network in it."""
    source = _Source(archive.record, archive.arrays, custom)
    options, part = source.part(archive.record, "options"), source.part(archive.record, "trainer")
    optimizer = source.value(part, "optimizer", Optimizer)
    seed = source.value(part, "seed", int)
    run = Run(
        network,
        optimizer=optimizer,
        batch_size=source.value(options, "batch_size"),
        shuffle=source.value(options, "shuffle"),
        drop_last=source.value(options, "drop_last"),
        threads=source.value(options, "threads"),
        seed=seed,
        regularize=(),
        clip_norm=None,
        clip_value=None,
        ema=None,
        use_ema=False,
        rate_factors=None,
    )
    run.shape_by(_shaping_from(source, options, network, seed), source.value(options, "use_ema", bool))
    buffers = run.buffers
    moments = source.array("moments", buffers.moments.shape, buffers.moments.dtype)
    state = RunState(
        _position_from(source, source.part(part, "position"), network),
        _position_from(source, source.part(part, "outside"), network),
        _memory_from(source, source.part(part, "memory"), buffers),
    )
    shown = source.part(part, "set_aside")
    set_aside = (
        SetAside(*[source.snapshot(source.part(shown, name), buffers) for name in SetAside._fields]) if shown else None
    )
    run.__setstate__(
        run.__getstate__()
        | {
            "state": state,
            "history": _history_from(source, source.part(archive.record, "history"), network),
            "_is_last": source.value(part, "is_last", bool),
            "_buffers": (network.params, moments, set_aside, source.natural(part, "first_step")),
            "callback_memory": _callback_memory_from(source.value(part, "callback_memory", tuple)),
            "fit_record": source.value(part, "fit", (FitRecord, type(None))),
        }
    )
    return run


def _head(kind: str) -> dict[str, Any]:
    return {"program": _PROGRAM, "format": FORMAT, "kind": kind, "environment": _environment()}


def _environment() -> dict[str, str]:
    """Return what the bits of a run may depend on."""
    return {_PROGRAM: __version__, **_jit.environment()}


def _architecture_from(source: _Source, options: dict[str, Any]) -> Architecture:
    sizes, activations = source.value(options, "sizes", tuple), source.value(options, "activations", tuple)
    *hidden, output = activations
    loss, dtype = source.value(options, "loss"), source.value(options, "dtype", str)
    standardize, standardize_y = [source.value(options, name, bool) for name in ("standardize", "standardize_y")]
    return architecture_of(sizes, hidden, output, loss, dtype, standardize, standardize_y)


def _scaling_record(parts: _Parts, scaling: Scaling) -> dict[str, Any] | None:
    """Return what a network has learnt to standardize by; None if nothing."""
    if scaling.learnt is None or not scaling.learns:
        return None
    spreads = {name: spread for name, spread in zip("xy", scaling.learnt, strict=True) if spread is not None}
    return {
        name: {"mean": parts.put(f"{name}.mean", spread.mean), "std": parts.put(f"{name}.std", spread.std)}
        for name, spread in spreads.items()
    }


def _learnt_from(source: _Source, scaling: Scaling) -> Learnt | None:
    if source.record.get("scaling") is None:
        return None
    part = source.part(source.record, "scaling")
    spreads: list[Spread | None] = []
    for name, n_columns in zip("xy", scaling.n_columns, strict=True):
        if n_columns == 0:
            spreads.append(None)
            continue
        of_name = source.part(part, name)
        spread = Spread(*[source.array(of_name.get(field), (n_columns,), np.float64) for field in Spread._fields])
        if not (np.isfinite(spread.mean).all() and np.isfinite(spread.std).all() and (spread.std > 0.0).all()):
            raise CheckpointError(f"the record standardizes {name} by numbers that are no means and deviations")
        spreads.append(Spread(owned(spread.mean), owned(spread.std)))
    return spreads[0], spreads[1]


def _shaping_from(source: _Source, options: dict[str, Any], network: Network, seed: int) -> Shaping:
    """Return what shapes a step, every number of which is one."""
    shaping: Shaping = source.value(options, "shaping", Shaping)
    n_layers = network.architecture.layout.n_layers
    if not isinstance(shaping.layers, tuple) or len(shaping.layers) not in (0, n_layers):
        raise CheckpointError(f"the record shapes {shaping.layers!r} of {n_layers} layers")
    for layer in shaping.layers:
        if (
            not isinstance(layer, LayerShaping)
            or not isinstance(layer.of_weights, Group)
            or not isinstance(layer.of_biases, Group)
        ):
            raise CheckpointError(f"the record has a wrong layer, {layer!r}")
        _check_numbers(*layer.of_weights, *layer.of_biases, layer.dropout, layer.max_norm)
    _check_numbers(*shaping[1:])
    return shaping.seeded(seed)


def _check_numbers(*values: object) -> None:
    for value in values:
        if type(value) not in (int, float) or not value >= 0.0:  # type: ignore[operator]
            raise CheckpointError(f"the record has {value!r} where a number from 0 on belongs")


def _callback_memory_from(pairs: tuple[Any, ...]) -> dict[object, tuple[float, ...]]:
    memory: dict[object, tuple[float, ...]] = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], tuple):
            raise CheckpointError(f"the record has {pair!r} for what a callback remembers")
        memory[pair[0]] = pair[1]
    return memory


def _position_record(parts: _Parts, name: str, position: Position) -> dict[str, Any]:
    return {
        "cursor": {field: int(position.cursor[field]) for field in _KEPT},
        "totals": {field: encoded(float(position.totals[field]), "totals") for field in TOTALS.names or ()},
        "epoch_seconds": encoded(float(position.epoch_seconds), "seconds"),
        "fingerprint": position.fingerprint,
        "unvalidated": None if position.unvalidated is None else parts.put(f"{name}.unvalidated", position.unvalidated),
    }


def _position_from(source: _Source, part: dict[str, Any], network: Network) -> Position:
    position, cursor, totals = Position(), source.part(part, "cursor"), source.part(part, "totals")
    for name in _KEPT:
        position.cursor[name] = source.natural(cursor, name)
    for name in TOTALS.names or ():
        position.totals[name] = source.value(totals, name, (int, float))
    state = position.__dict__ | {
        "epoch_seconds": float(source.value(part, "epoch_seconds", (int, float))),
        "_fingerprint": source.value(part, "fingerprint", (str, type(None))),
    }
    if part.get("unvalidated") is not None:
        state["unvalidated"] = source.array(part["unvalidated"], network.params.shape, network.params.dtype)
    position.__setstate__(state)
    return position


def _memory_record(parts: _Parts, memory: RuleMemory) -> dict[str, Any]:
    return {
        "rules": encoded(memory.rules, "stop rules"),
        "validation": memory.validation,
        "table": encoded(tuple(map(tuple, memory.table.tolist())), "stop rules"),
        "start": encoded(memory.start, "validation"),
        "seen": encoded(memory.seen, "validation"),
        "judged_epochs": memory.judged_epochs,
        "judged": [
            {"best": encoded(each.best, "best"), "waited": each.waited}
            | {"snapshot": {} if each.snapshot is None else parts.snapshot(f"best.{index}", each.snapshot)}
            for index, each in enumerate(memory.judged)
        ],
    }


def _memory_from(source: _Source, part: dict[str, Any], buffers: Buffers) -> RuleMemory:
    rules = source.value(part, "rules", tuple)
    memory = RuleMemory(check_rules(rules), source.value(part, "validation", (str, type(None))))
    table = source.value(part, "table", tuple)
    if len(table) != len(memory.table):
        raise CheckpointError("the record has another number of stop rules than it names")
    memory.table[:] = np.array([tuple(row) for row in table], RULE)
    memory.start, memory.seen = source.value(part, "start"), source.value(part, "seen")
    n_epochs, judged = source.value(part, "judged_epochs", int), part.get("judged")
    if not isinstance(judged, list):
        raise CheckpointError("the record has no list of what stop rules have seen")
    seen = [
        Seen(
            source.value(each, "best", (int, float)),
            source.value(each, "waited", int),
            source.snapshot(each["snapshot"], buffers) if source.part(each, "snapshot") else None,
        )
        for each in judged
    ]
    memory.judge_as(n_epochs, seen)
    return memory


def _history_record(parts: _Parts, history: History) -> dict[str, Any]:
    names = [name for name in history._columns if name == "epoch" or not np.isnan(history[name]).all()]
    health = history.health
    return {
        "columns": {name: parts.put(f"history.{name}", history[name]) for name in names},
        "names": list(history._columns),
        "stop_reason": history.stop_reason,
        "compile_seconds": encoded(history.compile_seconds, "seconds"),
        "seed": history.seed,
        "start": encoded(history._start, "validation"),
        "divergences": encoded(history.divergences, "divergences"),
        "health": None
        if health is None
        else {
            "layers": encoded(health.layers, "layers"),
            "data": encoded(health.data, "data"),
            "first_non_finite": encoded(health.first_non_finite, "health"),
            **{name: parts.put(f"health.{name}", array) for name, array in health._arrays().items()},
        },
    }


def _history_from(source: _Source, part: dict[str, Any], network: Network) -> History:
    history = History(seed=source.value(part, "seed", (int, type(None))))
    columns = source.part(part, "columns")
    length = source.arrays[str(columns.get("epoch"))].size if "epoch" in columns else 0
    dtypes = {name: np.int64 if name == "epoch" else np.float64 for name in columns}
    rows = {name: source.array(place, (length,), dtypes[name]) for name, place in columns.items()}
    names = source.value(part, "names", tuple)
    check_metrics({str(name): len for name in names if name not in history._columns})
    history._fill_with(names, rows)
    history.stop_reason = source.value(part, "stop_reason", (str, type(None)))
    history.compile_seconds = float(source.value(part, "compile_seconds", (int, float)))
    history._start = source.value(part, "start", (tuple, type(None)))
    history.divergences = source.value(part, "divergences", tuple)
    if part.get("health") is not None:
        history.health = _health_from(source, source.part(part, "health"), network)
    return history


def _health_from(source: _Source, part: dict[str, Any], network: Network) -> Health:
    layers = source.value(part, "layers", tuple)
    if len(layers) != network.architecture.layout.n_layers or not all(
        isinstance(layer, LayerFacts) for layer in layers
    ):
        raise CheckpointError("the record of health is of another network")
    health = Health(layers, source.value(part, "data", DataFacts))
    health.first_non_finite = source.value(part, "first_non_finite", (tuple, type(None)))
    length = source.arrays[str(part.get("step"))].size if "step" in part else 0
    health._fill_with(
        {
            name: source.array(part.get(name), (length, *empty.shape[1:]), empty.dtype)
            for name, empty in health._arrays().items()
        }
    )
    return health
