"""The error that every layer's own error derives from: what was given, what was expected, the likely fix."""

from __future__ import annotations

from typing import Any


class NeurorayError(Exception):
    """A fault that a person can mend, told in one line.

    Each layer derives one class from it (`ScanError`, `StoreError`, `KernelError`, `RecipeError`), which is also the
    standard error that it is (`ValueError`, `OSError`), so that callers who know nothing of this package can still
    catch it.

    Args:
        fault: What is wrong, in plain words, naming the thing (file, row, field) it is wrong with.
        given: What was found.
        expected: What would have been right.
        fix: What the reader most likely has to do.
    """

    def __init__(self, fault: str, *, given: Any = None, expected: Any = None, fix: str | None = None) -> None:
        self.fault = fault
        self.given = None if given is None else str(given)
        self.expected = None if expected is None else str(expected)
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.fault]
        if self.given is not None:
            parts.append(f"given {self.given}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        if self.fix is not None:
            parts.append(f"likely fix: {self.fix}")
        return "; ".join(parts)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions are pickled by their positional arguments; ours carry keywords, and must cross process
        # borders whole.
        return _rebuild, (type(self), self.fault, self.given, self.expected, self.fix)

    def to_json(self) -> dict[str, str | None]:
        """The parts by name, for reports and HTTP answers."""
        return {
            "error": type(self).__name__,
            "fault": self.fault,
            "given": self.given,
            "expected": self.expected,
            "fix": self.fix,
        }


def _rebuild(
    cls: type[NeurorayError], fault: str, given: str | None, expected: str | None, fix: str | None
) -> NeurorayError:
    return cls(fault, given=given, expected=expected, fix=fix)
