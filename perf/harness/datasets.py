"""Readers of the real data that accuracy is measured on; the files are not part of the project."""

from __future__ import annotations

import argparse
import gzip
import os
from pathlib import Path

import numpy as np


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add `--data FOLDER`, by default what the variable FASTBP_DATA names."""
    default = os.environ.get("FASTBP_DATA")
    parser.add_argument(
        "--data", type=Path, default=default, required=default is None, help="folder with the data (or FASTBP_DATA)"
    )


def read_idx(path: Path) -> np.ndarray:
    """Return the array of unsigned bytes of a gzipped IDX file."""
    content = gzip.decompress(path.read_bytes())
    n_axes = content[3]
    shape = np.frombuffer(content, ">u4", n_axes, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_axes).reshape(shape)


def fashion_mnist(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (n, 784), float32 from 0 to 1, and labels (n,) of "train" or "t10k"."""
    images = read_idx(folder / "fashion_mnist" / f"{part}-images-idx3-ubyte.gz")
    labels = read_idx(folder / "fashion_mnist" / f"{part}-labels-idx1-ubyte.gz")
    return images.reshape(len(images), -1) / np.float32(255), labels


def uci_regression(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of "bike" or "kin40k"."""
    table = np.loadtxt(folder / "uci_regression_large" / name / "data.csv.gz", delimiter=",")
    return table[:, :-1], table[:, -1]


def california_housing(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return x (20640, 8) and y (20640,), in 100 kUSD, with the columns and the rows as scikit-learn orders them."""
    table = np.loadtxt(folder / "california_housing" / "cal_housing.data", delimiter=",")
    longitude, latitude, age, rooms, bedrooms, population, households, income, value = table.T
    per_household = [total / households for total in (rooms, bedrooms, population)]
    columns = [income, age, *per_household[:2], population, per_household[2], latitude, longitude]
    return np.column_stack(columns), value / 1e5
