"""exp, expm1, tanh, sigmoid, log, log1p, erf and softplus of one SIMD vector, float32 or float64.

Largest errors in ulp with FMA, over every 23rd float32 value and 200 000 float64 values (tools/elementary_error.py):

===================  =======  =======
function             float32  float64
===================  =======  =======
exp_negative            0.90     0.82
exp_negative_factor     0.90     0.82
expm1                   1.56     1.83
tanh                    3.33     3.20
sigmoid                 2.36     1.80
sigmoid_factor          2.36     1.80
log1p                   1.44     1.62
log1p_unit              1.35     1.33
erf                     1.89     1.76
softplus                2.00     1.87
===================  =======  =======

No function does arithmetic on subnormals, with FMA, for arguments that `simd.flush` leaves; without FMA the products
inside of multiply-adds may be such for tiny arguments. Values of exp_negative, sigmoid and softplus that `flush` would
take to zero are zero, and those up to 1.42 times larger may be; so are those of exp_negative_factor and sigmoid_factor
that `flush_factor` would. Infinities and NaN give their limits and NaN; the odd functions are odd bit by bit and keep
the sign of zero. The polynomials are minimax fits (tools/fit_elementary.py).

References
----------
Muller, Elementary Functions (3rd ed., 2016), chapters 3 (minimax polynomials) and 11 (range reduction).
"""

from fastbp._jit import inline
from fastbp.kernels.simd import (
    absolute,
    bitcast,
    by_dtype,
    copysign,
    fma,
    maximum,
    minimum,
    polynomial,
    smallest_normal,
    splat,
    where,
)

_LOG2_E = 1.4426950408889634
_LN2 = 0.6931471805599453
_INFINITY, _NAN = float("inf"), float("nan")
# Products of _LN2_HIGH and an exponent are exact; _LN2_LOW is what it lacks.
_LN2_HIGH = by_dtype(0.693145751953125, 0.6931471803691238)
_LN2_LOW = by_dtype(1.428606820309417e-06, 1.9082149292705877e-10)

_MANTISSA_BITS = by_dtype(23, 52)
# A number plus _SHIFT is rounded to an integer n, and its lowest bits are the exponent field of 2**(n - 1).
_SHIFT = by_dtype(1.5 * 2**23 + 126, 1.5 * 2**52 + 1022)
_SQRT_HALF_BITS = by_dtype(0x3F3504F3, 0x3FE6A09E667F3BCD)

# Beyond these, exp is infinite, 1 (from below) or 0, expm1 is -1, and tanh and erf are 1.
_EXP_MAX = by_dtype(89.0, 710.0)
_EXP_IS_ONE = by_dtype(-(2.0**-28), -(2.0**-56))
_EXPM1_MIN = by_dtype(-18.0, -38.0)
_TANH_MAX = by_dtype(10.0, 20.0)
_ERF_MAX = by_dtype(4.0, 6.0)

# (expm1(r) - r) / r**2 for abs(r) <= log(2)/2.
_EXPM1_FACTOR = (
    (0.5, 0.16666531562805176, 0.04166616499423981, 0.00836804136633873, 0.0013973928289487958),
    (
        0.5, 0.16666666666666677, 0.041666666666666685, 0.008333333333321126, 0.0013888888888863285,
        0.0001984126988793604, 2.4801587392056082e-05, 2.755724196889971e-06, 2.755719522630679e-07,
        2.5109936961170733e-08, 2.0945253698198447e-09,
    ),
)  # fmt: skip
_expm1_factor = polynomial(*_EXPM1_FACTOR)
# (expm1(2 * r) / 2 - r) / r**2 for abs(r) <= log(2)/4.
_expm1_of_twice_factor = polynomial(*([c * 2.0 ** (i + 1) for i, c in enumerate(part)] for part in _EXPM1_FACTOR))
# (log1p(f) - f) / f**2 for sqrt(1/2) <= 1 + f <= sqrt(2).
_log1p_factor = polynomial(
    float32=(
        -0.5, 0.3333330750465393, -0.2499997615814209, 0.20002393424510956, -0.16669903695583344, 0.14216576516628265,
        -0.12374258041381836, 0.11875488609075546, -0.11834666877985, 0.06956591457128525,
    ),
    float64=(
        -0.5, 0.3333333333333363, -0.25000000000000283, 0.19999999999886198, -0.16666666666507357, 0.1428571430065948,
        -0.12500000027570216, 0.11111110154921568, -0.09999997801682083, 0.09090943164197011, -0.08333428506223953,
        0.07691599664105893, -0.07140446780022318, 0.06675000777587584, -0.06286455534073342, 0.05836971969529991,
        -0.052370128852278965, 0.05224358045654859, -0.06405485984886616, 0.06323622309765677, -0.028732870621578775,
    ),
)  # fmt: skip
# The same for 0 <= f <= 1.
_log1p_unit_factor = polynomial(
    float32=(
        -0.5, 0.3333224952220917, -0.24975083768367767, 0.19774256646633148, -0.15569399297237396, 0.11025018990039825,
        -0.06092168018221855, 0.021876230835914612, -0.003677796106785536,
    ),
    float64=(
        -0.5, 0.3333333333330176, -0.24999999996802488, 0.19999999869402776, -0.16666663705932921, 0.14285671479312007,
        -0.12499572852390706, 0.11108015501408415, -0.09983119839690922, 0.09019840615574166, -0.08097724057412475,
        0.07067412064497973, -0.057983006294209, 0.04286499769659879, -0.027254363611471082, 0.014186312843477752,
        -0.005715780059207025, 0.001654692387831397, -0.00030412767430717277, 2.653115855578114e-05,
    ),
)  # fmt: skip
# -log(erfc(x)) / x - 1 for 0 <= x <= _ERF_MAX.
_erf_exponent = polynomial(
    float32=(
        0.12837916612625122, 0.6366195678710938, 0.10277630388736725, -0.01914781890809536, -0.00016951975703705102,
        0.0016756999539211392, -0.000637379998806864, 0.0001188666356028989, -9.388566468260251e-06,
    ),
    float64=(
        0.12837916709551256, 0.6366197723675898, 0.10277260330137356, -0.019128446994543403, -0.00020919483593949935,
        0.0016962075416002362, -0.000590131846636503, 2.590268774438915e-05, 6.442448714247312e-05,
        -2.958220090353622e-05, 3.1776121285920335e-06, 3.125708994671758e-06, -2.0322440790762987e-06,
        5.681950963870273e-07, -1.0923673943973564e-08, -6.582512680437067e-08, 3.4525924638779365e-08,
        -1.0731491564317802e-08, 2.3459578104849235e-09, -3.727767906519393e-10, 4.2512713578832235e-11,
        -3.3133727505801715e-12, 1.584175209549994e-13, -3.508415610018968e-15,
    ),
)  # fmt: skip


@inline
def _reduce(x, shift):
    """n + shift and r of the reduction x = n * log(2) + r with the nearest integer n."""
    shifted = fma(x, _LOG2_E, shift)
    n = shifted - shift
    return shifted, fma(n, -_LN2_LOW(x), fma(n, -_LN2_HIGH(x), x))


def _exponential(float32, float64):
    """A function e**x for x of at most `_EXP_MAX`, or 0 where that is less than 2**-(p + 1/2), with a p for each dtype.

    For half the normal range a p costs nothing: a power of two whose exponent field is 0 is 0.
    """
    powers = 127 - 1 - float32, 1023 - 1 - float64
    unit = by_dtype(*(2.0**power for power in powers))
    factor = polynomial(*([c * 2.0**power for c in part] for power, part in zip(powers, _EXPM1_FACTOR, strict=True)))
    shift = by_dtype(1.5 * 2**23 + float32 + 1, 1.5 * 2**52 + float64 + 1)
    lowest = by_dtype(-(float32 + 1) * _LN2, -(float64 + 1) * _LN2)

    @inline
    def exponential(x):
        # A NaN stays one, as minimum and maximum give their second argument for it: so in all functions below.
        shifted, r = _reduce(maximum(lowest(x), x), shift(x))
        return fma(r, fma(r, factor(r), unit(x)), unit(x)) * bitcast(bitcast(shifted) << _MANTISSA_BITS(x))

    return exponential


_exp = _exponential(118, 1014)  # no less than `least_kept`
_exp_factor = _exponential(62, 510)  # no less than `root_of_tiny`


@inline
def _half_expm1(x):
    """(e**x - 1) / 2, finite where the double is not, for x between `_EXPM1_MIN` and `_EXP_MAX`."""
    shifted, r = _reduce(x, _SHIFT(x))
    half_power = bitcast(bitcast(shifted) << _MANTISSA_BITS(x))
    return fma(fma(r * _expm1_factor(r), r, r), half_power, half_power - 0.5)


@inline
def exp_negative(x):
    """e**x for x <= 0, which may be subnormal."""
    return _exp(minimum(_EXP_IS_ONE(x), x))


@inline
def exp_negative_factor(x):
    """e**x for x <= 0, as `flush_factor` leaves it."""
    return _exp_factor(minimum(_EXP_IS_ONE(x), x))


@inline
def exp(x):
    """e**x; infinite where it overflows, and 0 where `flush` would take it there."""
    return _exp(minimum(_EXP_MAX(x), x))


@inline
def expm1(x):
    """e**x - 1 without cancellation for small x."""
    half = _half_expm1(maximum(_EXPM1_MIN(x), minimum(_EXP_MAX(x), x)))
    return copysign(half + half, x)


@inline
def tanh(x):
    """Hyperbolic tangent, h / (1 + h) with h = expm1(2 * abs(x)) / 2; exactly 1 from where it rounds to 1."""
    shifted, r = tanh_reduce(x)
    return tanh_quotient(tanh_half_expm1(shifted, r), x)


@inline
def tanh_reduce(x):
    """The first of three stages of `tanh`: n + a constant, and r, of abs(x) = (n * log(2) + 2 * r) / 2.

    One step of reduction is enough: its error grows with n, but 1 + h does with 2**n.
    """
    size = minimum(_TANH_MAX(x), absolute(x))
    shift = _SHIFT(x) + 1.0
    shifted = fma(size, 2.0 * _LOG2_E, shift)
    return shifted, fma(shifted - shift, -0.5 * _LN2, size)


@inline
def tanh_half_expm1(shifted, r):
    """The second stage: h."""
    power = bitcast(bitcast(shifted) << _MANTISSA_BITS(r))
    return fma(r * power, fma(r, _expm1_of_twice_factor(r), 1.0), fma(power, 0.5, -0.5))


@inline
def tanh_quotient(half, x):
    """The last stage."""
    return copysign(half / (half + 1.0), x)


@inline
def sigmoid(x):
    """1 / (1 + e**-x), as e**x / (1 + e**x): so it is exact down to where e**x is 0."""
    power = _exp(minimum(40.0, x))
    return power / (power + 1.0)


@inline
def sigmoid_factor(x):
    """`sigmoid`, as `flush_factor` leaves it."""
    power = _exp_factor(minimum(40.0, x))
    return power / (power + 1.0)


@inline
def log1p(x):
    """log(1 + x) without cancellation for small x: -inf at -1, NaN below."""
    # 1 + x = 2**n * (1 + f): its rounding decides about n only, since f comes from x.
    exponent = (bitcast(x + 1.0) - _SQRT_HALF_BITS(x)) >> _MANTISSA_BITS(x)
    n = bitcast(bitcast(splat(x, _SHIFT(x))) + exponent) - _SHIFT(x)
    # By way of 2**(2 - n), which is a normal number for all n.
    inverse_power = bitcast(bitcast(splat(x, 4.0)) - (exponent << _MANTISSA_BITS(x))) * 0.25
    f = fma(x, inverse_power, inverse_power - 1.0)
    value = fma(n, _LN2, fma(f * _log1p_factor(f), f, f))
    value = where(x == _INFINITY, x, copysign(value, x))
    return where(x > -1.0, value, where(x == -1.0, splat(x, -_INFINITY), _NAN))


@inline
def log(x):
    """Natural logarithm: -inf at 0 (and for subnormals), NaN below."""
    exponent = (bitcast(x) - _SQRT_HALF_BITS(x)) >> _MANTISSA_BITS(x)
    n = bitcast(bitcast(splat(x, _SHIFT(x))) + exponent) - _SHIFT(x)
    # x = 2**n * (1 + f), by way of 2**(2 - n), which is a normal number for all n.
    f = fma(x * (bitcast(bitcast(splat(x, 4.0)) - (exponent << _MANTISSA_BITS(x)))), 0.25, -1.0)
    value = fma(n, _LN2_HIGH(x), fma(n, _LN2_LOW(x), fma(f * _log1p_factor(f), f, f)))
    value = where(x == _INFINITY, x, value)
    return where(x >= smallest_normal(x), value, where(x >= 0.0, splat(x, -_INFINITY), _NAN))


@inline
def log1p_unit(x):
    """log(1 + x) for 0 <= x <= 1, at half the cost of `log1p`."""
    return fma(x * _log1p_unit_factor(x), x, x)


@inline
def erf(x):
    """Error function, -expm1(-y) with y = -log(erfc(x)): y is smooth, and no error of it is amplified."""
    size = minimum(_ERF_MAX(x), absolute(x))
    half = _half_expm1(-fma(size, _erf_exponent(size), size))
    return copysign(half + half, x)


@inline
def softplus(x):
    """log(1 + e**x) without overflow."""
    return maximum(0.0, x) + log1p_unit(exp_negative(-absolute(x)))
