"""Long sums, in parts: a chain of float32 additions errs by more the longer it is, so none may grow with the data.

A sum of at most LONG terms is one chain. A longer one is cut into parts of PART terms each: even if all its terms are
alike, and roundings go the same way for hundreds of them, the chain of a part errs by less than 1e-5 of its sum. The
parts go into a total, and what its rounding loses, the rest, is what the next part begins with: so the total errs by
one rounding however many there are. The cut depends on the number of terms alone, hence so do the bits.

References
----------
Kahan, Further remarks on reducing truncation errors, Comm. ACM 8 (1965). Knuth, The Art of Computer Programming 2,
section 4.2.2, theorem B: the error of a sum as a sum itself.
"""

from numba import types

from fastbp._jit import inline, leaf
from fastbp.kernels.calls import call
from fastbp.kernels.simd import is_finite, lanes_of, load_upto, store_upto, where

LONG, PART = 1024, 512


@inline
def part_of(n_terms):
    """The terms of each chain of a sum; the last one may have fewer."""
    return n_terms if n_terms <= LONG else PART


@inline
def add_part(total, part):
    """(total + part, what its rounding lost), of vectors; the loss is 0 where the sum is not finite."""
    new = total + part
    added = new - total
    lost = (total - (new - added)) + (part - added)
    return new, where(is_finite(lost), lost, 0.0)


@leaf(lambda T: types.void(types.CPointer(T), types.CPointer(T), types.intp, types.intp, types.intp))
def add_parts(totals, parts, row, n_rows, n):
    """totals += parts, parts = what the rounding of that lost: n_rows rows of n elements, `row` apart in both.

    No checks: the caller validates.
    """
    for start in range(0, n_rows * row, row):
        for j in range(0, n, lanes_of(totals)):
            total, lost = add_part(load_upto(totals, start + j, n - j), load_upto(parts, start + j, n - j))
            store_upto(totals, start + j, total, n - j)
            store_upto(parts, start + j, lost, n - j)


@inline
def place_of_part(k, n_terms, c, partial):
    """Where the part of a sum of n_terms goes that term k belongs to: the first one into c."""
    return c if k < part_of(n_terms) else partial


@inline
def start_of_part(plan, k, n_terms, init, place):
    """What a part goes on from at term k: `init` at the sum's beginning, zeros, or what is in its place.

    Each is an address and what else a product is told of it, 0 and 0 of zeros.
    """
    if k == 0:
        return init
    return (plan.zeros, 0, 0) if k == part_of(n_terms) else place


@inline
def end_part(plan, k, n_terms, c, partial, n):
    """Add n partial sums to their totals in c where a part, but the first one, ends before term k."""
    part = part_of(n_terms)
    if k > part and (k % part == 0 or k == n_terms):
        call(plan.leaves.add_parts, (c, partial, n, 1, n))
