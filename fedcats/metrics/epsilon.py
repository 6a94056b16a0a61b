"""What DP-SGD promises: epsilon at delta, by Google's dp-accounting.

Of steps that take each photo with a probability of its own and add Gaussian noise to the sum of
clipped gradients; two shards are neighbours when one of them has one photo more. Privacy loss
distributions (Koskela et al. 2020, arXiv:1906.03049; Doroshenko et al. 2022, arXiv:2207.04380) give
an upper bound that is nearly exact.
"""

from __future__ import annotations

import functools
import math
from typing import Any

LEAST_NOISE = 0.3
"""In multiples of the clip: with less there is no epsilon worth the name, and it takes minutes."""

_MOST_NOISE = 1e4
_ORDERS = (*range(2, 65), 96, 128, 256, 512)  # whole ones, whose sums are finite
_COARSE, _FINE = 1e-3, 1e-4  # of the discretization, for a large and a small epsilon


@functools.cache
def spent(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon at ``delta`` of so many steps.

    Parameters
    ----------
    noise
        Standard deviation in multiples of the clip, above 0.
    rate
        Probability of each photo to be in a step, above 0 to 1.
    """
    from dp_accounting import get_epsilon_gaussian
    from dp_accounting.pld import PLDAccountant

    if rate == 1.0:  # nothing is left out: the Gaussian mechanism, exactly
        return float(get_epsilon_gaussian(noise / math.sqrt(steps), delta))
    rough = renyi(noise, rate, steps, delta)
    accountant = PLDAccountant(value_discretization_interval=_FINE if rough < 10 else _COARSE)
    return min(rough, _spent(accountant, noise, rate, steps, delta))


def renyi(noise: float, rate: float, steps: int, delta: float) -> float:
    """The same by Rényi divergences (Mironov et al. 2019, arXiv:1908.10530): quick, and larger."""
    from dp_accounting.rdp import RdpAccountant

    return _spent(RdpAccountant(_ORDERS), noise, rate, steps, delta)


@functools.cache
def noise_for(epsilon: float, rate: float, steps: int, delta: float) -> float:
    """The least noise with which `spent` is at most ``epsilon``, to three digits rounded up.

    Raises
    ------
    ValueError
        When that is less than `LEAST_NOISE` or far too much.
    """
    from dp_accounting import get_sigma_gaussian

    if rate == 1.0:
        least = math.sqrt(steps) * float(get_sigma_gaussian(epsilon, delta))
        return _rounded_up(max(LEAST_NOISE, least))
    low, high = LEAST_NOISE, LEAST_NOISE
    while renyi(high, rate, steps, delta) > epsilon:
        low, high = high, 1.5 * high
        if high > _MOST_NOISE:
            raise ValueError(f"no noise gives an epsilon of {epsilon:g}")
    if low == high:
        return LEAST_NOISE
    low = max(LEAST_NOISE, low / 1.5)  # it is tighter than the quick one
    while high / low > 1.005:
        middle = math.sqrt(low * high)
        if spent(middle, rate, steps, delta) <= epsilon:
            high = middle
        else:
            low = middle
    return _rounded_up(high)


def usual_delta(photos: int) -> float:
    """The largest power of ten below ``1 / photos``."""
    return 10.0 ** -len(str(photos))


def client_noise(epsilon: float, delta: float, clients: int, weights: int) -> float:
    """Length of the noise in the mean of the clients' updates, in multiples of their clip.

    With a whole client the unit of privacy, in one round with all of them: the sum of the clipped
    updates gets noise in each of so many ``weights``.
    """
    noise = noise_for(epsilon, 1.0, 1, delta)
    return noise * math.sqrt(weights) / clients


def _rounded_up(noise: float) -> float:
    """To three digits: the last ones, of other versions' rounding, would train all anew."""
    digits = 10.0 ** (2 - math.floor(math.log10(noise)))
    return math.ceil(noise * digits) / digits


def _spent(accountant: Any, noise: float, rate: float, steps: int, delta: float) -> float:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent

    one = PoissonSampledDpEvent(rate, GaussianDpEvent(noise))
    return float(accountant.compose(SelfComposedDpEvent(one, steps)).get_epsilon(delta))
