"""Models and trainers from files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastbp import archive, checks
from fastbp.model import MLP
from fastbp.recording import check_kind, in_present_format, network_from, run_from
from fastbp.trainer import Trainer

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["load"]


def load(path: str | os.PathLike[str], custom: Mapping[str, object] | None = None) -> MLP | Trainer[MLP]:
    """Return the model or the trainer in a file that `MLP.save`, `Trainer.save` or a fit's checkpoint has written.

    Everything is checked before it is used, and nothing is imported or executed: files of strangers may be looked at.

    Parameters
    ----------
    path : path_like
    custom : mapping of str to Activation, Loss or UpdateRule, optional
        Formulas of your own, under the names that they have in the file.

    Returns
    -------
    MLP or Trainer
        As it was when it was written; it goes on with the same bits on the same kind of machine.

    Raises
    ------
    CheckpointError
        If it is no such file, is damaged, or needs a formula that is not in `custom`; it says which.
    OSError
        Of the file system.

    Warns
    -----
    RuntimeWarning
        If another version of fastbp, Numba or LLVM, or code for another processor, has written the file.

    Examples
    --------
    >>> import fastbp, pathlib, tempfile
    >>> model = fastbp.MLP([2, 8, 1], seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.npz"
    ...     model.save(path)
    ...     loaded = fastbp.load(path)
    >>> bool((loaded.params == model.params).all())
    True
    """
    own = {} if custom is None else dict(custom)
    file = checks.path(path, "path")
    read = archive.read(file)
    with archive.named(file):
        return _made(read, own)


def _made(read: archive.Archive, custom: Mapping[str, object]) -> MLP | Trainer[MLP]:
    kind, read = check_kind(read), in_present_format(read)
    network, seed = network_from(read, custom)
    model: MLP = MLP.__new__(MLP)
    model.__setstate__({"_network": network, "seed": seed})
    if kind == "model":
        return model
    trainer: Any = Trainer.__new__(Trainer)
    trainer.__setstate__({"_run": run_from(read, network, custom), "_model": model})
    return trainer  # type: ignore[no-any-return]
