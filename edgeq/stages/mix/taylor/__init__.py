"""Effects of places from gradients. The whole folder imports torch; the rest of the stage imports it lazily."""

from edgeq.stages.mix.taylor.scores import score

__all__ = ["score"]
