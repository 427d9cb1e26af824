"""What rounding minimizes: a quadratic in the weights of a layer, made of its moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeq.qtypes import PerBlock, TensorSpec
from edgeq.stages.refine.rounding.moments import Half, Moments

__all__ = ["Quadratic", "bias_shift", "columns", "output_error", "quadratic"]

_LEAST = 1e-20
"""Mean variances below are rounding noise of the sums."""


@dataclass(frozen=True)
class Quadratic:
    """``cost(Q) = (Q - target) gram (Q - target)^T`` for each output channel: the error of its outputs, but a constant.

    ``target`` ``[G, M, K]`` are the real numbers that would do best, ``gram`` ``[G, K, K]`` is positive definite;
    both float64.
    """

    target: np.ndarray
    gram: np.ndarray

    def cost(self, weights: np.ndarray) -> np.ndarray:
        """float64 ``[G, M]`` for ``weights`` ``[G, M, K]``."""
        error = weights - self.target
        return ((error @ self.gram) * error).sum(axis=2)

    def permuted(self, order: np.ndarray) -> Quadratic:
        """The same with its columns in ``order``, ``[G, K]``."""
        turned = np.take_along_axis(self.gram, order[:, :, None], axis=1)
        gram = np.take_along_axis(turned, order[:, None, :], axis=2)
        return Quadratic(np.take_along_axis(self.target, order[:, None, :], axis=2), gram)

    @property
    def order(self) -> np.ndarray:
        """The columns of each group by falling diagonal of the gram, ``[G, K]``: what is loudest first."""
        return np.argsort(-np.diagonal(self.gram, axis1=1, axis2=2), axis=1, kind="stable")


def quadratic(
    matrix: np.ndarray, moments: Moments | Half, *, centered: bool = True, damping: float = 0.01
) -> Quadratic:
    """``E ||W x_f - Q x_q||^2 + d ||W - Q||^2`` as a function of ``Q``, for the float weight ``matrix`` ``[G, M, K]``.

    The float outputs are the aim, the inputs are those of the quantized model, so that a layer makes good what
    the layers before it lost. With ``C = E[x_f x_q^T]`` and ``H = E[x_q x_q^T] + d I`` the minimum over real
    numbers is ``(W C + d W) H^-1``. ``centered`` takes covariances: a bias then absorbs the means
    (``bias_shift``). ``damping`` is ``d`` as a share of the mean diagonal (GPTQ, Frantar et al. 2022, arXiv
    2210.17323, step 3): it makes dead inputs and few samples harmless, as what the data does not tell
    keeps the float weight.
    """
    gram, cross = _products(moments, centered)
    mean = np.diagonal(gram, axis1=1, axis2=2).mean(axis=1)
    # A group whose inputs never change has no gram at all: then every column weighs the same.
    damp = np.where(mean > _LEAST, damping * mean, 1.0)[:, None, None] * np.eye(gram.shape[1])
    damped = gram + damp
    matrix = matrix.astype(np.float64)
    target = np.linalg.solve(damped, (matrix @ (cross + damp)).swapaxes(1, 2)).swapaxes(1, 2)
    return Quadratic(target, damped)


def output_error(
    matrix: np.ndarray, weights: np.ndarray, moments: Moments | Half, *, centered: bool = True
) -> np.ndarray:
    """``E ||W x_f - Q x_q||^2`` less ``E ||W x_f||^2``, float64 ``[G, M]``: to compare candidates for ``Q``."""
    gram, cross = _products(moments, centered)
    return ((weights @ gram - 2 * (matrix @ cross)) * weights).sum(axis=2)


def _products(moments: Moments | Half, centered: bool) -> tuple[np.ndarray, np.ndarray]:
    gram, cross = moments.gram, moments.cross
    if centered:
        gram = gram - moments.mean_q[:, :, None] * moments.mean_q[:, None, :]
        cross = cross - moments.mean_f[:, :, None] * moments.mean_q[:, None, :]
    return gram, cross


def bias_shift(matrix: np.ndarray, rounded: np.ndarray, moments: Moments) -> np.ndarray:
    """``E[W x_f] - E[Q x_q]``, float64 ``[G * M]``: what to add to the bias, so that the outputs' means are kept."""
    wanted = matrix.astype(np.float64) @ moments.mean_f[:, :, None]
    found = rounded.astype(np.float64) @ moments.mean_q[:, :, None]
    return (wanted - found).ravel()


def columns(scale: np.ndarray, spec: TensorSpec, size: int) -> np.ndarray:
    """A scale ``[G or 1, M or 1, blocks or 1]`` for each of ``size`` columns, ``[.., .., K or 1]``."""
    granularity = spec.granularity
    if not isinstance(granularity, PerBlock):
        return scale
    return np.repeat(scale, granularity.size, axis=2)[:, :, :size]
