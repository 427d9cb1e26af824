"""Independent trials on all cores, or on a cluster that the user has named to joblib.

A user with a cluster wraps the call in joblib's own context::

    import joblib
    with joblib.parallel_config("dask"):
        edgeq.export(...)

Results come in the order of the items, whatever finishes first, so that the outcome does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from edgeq.progress import Progress, Silent

__all__ = ["cluster_named", "map_trials"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_trials(
    function: Callable[[Item], Result], items: Iterable[Item], *, step: str = "", progress: Progress | None = None
) -> list[Result]:
    """``[function(item) for item in items]``, in parallel and in order.

    ``function`` and the items must be picklable (a function of a module, paths rather than models), and
    ``function`` must keep to one thread: all cores are taken by the trials themselves. ``step`` names the
    work for ``progress``. What ``function`` raises is raised here.
    """
    import joblib

    items, progress = list(items), progress or Silent()
    if len(items) < 2:
        return [function(item) for item in items]
    progress.start(step or "trials", len(items))
    results = []
    try:
        # A generator tells of every result as it comes; -1 takes all cores unless the user's context says otherwise.
        for result in joblib.Parallel(n_jobs=_jobs(), return_as="generator")(
            joblib.delayed(function)(item) for item in items
        ):
            results.append(result)
            progress.advance()
    finally:
        progress.finish()
    return results


def cluster_named() -> bool:
    """Whether the user has named another backend to joblib than its own processes and threads."""
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    return not type(backend).__module__.startswith("joblib._parallel_backends")


def _jobs() -> int | None:
    """All cores of this machine, or what the user's ``parallel_config`` says."""
    from joblib.parallel import get_active_backend

    _, count = get_active_backend()
    return -1 if count == 1 else None
