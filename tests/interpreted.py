"""Kernels on the CPU, with less waiting: whoever runs them imports this file.

Triton's interpreter patches its whole language at each launch, and again at each call of a device function,
by looking through a thousand names. The second takes half of the time.
"""

import sys


def patch_once() -> None:
    """A device function patches the language only if it finds it unpatched."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction, InterpreterError

    patching = InterpretedFunction.__call__

    def call(self, *args, **kwargs):
        seen = [module for module in self.fn.__globals__.values() if module is tl or module is tl.core]
        if any(tl.core.is_builtin(module.load) for module in seen):
            return patching(self, *args, **kwargs)
        try:
            return self.rewrite()(*args, **kwargs)
        except Exception as error:
            raise InterpreterError(repr(error)) from error

    InterpretedFunction.__call__ = call


if sys.platform == "linux":
    patch_once()
