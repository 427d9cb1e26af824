"""Real providers, emulators and compilers, each in an environment and a process of its own.

Several of their packages overwrite the ``onnxruntime`` module or can abort the process, so none of
them is ever imported here.
"""

from edgeq.sandbox.protocol import Outcome, Sandbox, Task
from edgeq.sandbox.registry import find_sandbox, sandbox_names

__all__ = ["Outcome", "Sandbox", "Task", "find_sandbox", "sandbox_names"]
