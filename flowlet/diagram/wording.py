"""What is written at arrows and under names.

Law: the words are those that the marks use (``after``, ``done``, ``failed``, ``internal``), in UML's order:
trigger, guards in brackets, action behind a slash.
"""

from __future__ import annotations

from flowlet.diagram.exported import StepExport, TransitionExport

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def duration(seconds: float) -> str:
    """Write a time with its units, such as ``3 d`` or ``1 min 30 s``."""
    if 0 < seconds < 1:
        return f"{seconds * 1000:g} ms"
    parts: list[str] = []
    rest = seconds
    for size, unit in _UNITS:
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count:.0f} {unit}")
    if rest or not parts:
        parts.append(f"{rest:g} s")
    return " ".join(parts)


def trigger(transition: TransitionExport) -> str:
    """Say what makes a transition happen; nothing for one without an event."""
    event, source = transition.event, transition.source
    if transition.kind == "after":
        return f"after {duration(transition.after or 0)}"
    if transition.kind == "eventless":
        return ""
    if event in (f"done.state.{source}", f"done.invoke.{source}"):
        return "done"
    return "failed" if event == f"error.invoke.{source}" else event


def transition_label(transition: TransitionExport) -> str:
    """Write what stands at a transition's arrow."""
    words = [trigger(transition)]
    if transition.guards:
        words.append(f"[{', '.join(transition.guards)}]")
    if transition.method != words[0]:
        words.append(f"/ {transition.method}")
    if transition.internal or not transition.targets:
        words.append("(internal)")
    if transition.exclusive:
        words.append("(exclusive)")
    return " ".join(w for w in words if w)


def error_label(transition: TransitionExport) -> str:
    """Write what stands at the arrow to the state that a failed action leads to."""
    return f"{trigger(transition) or transition.method} on error"


def step_details(step: StepExport) -> str:
    """Write what is special about a step, or nothing."""
    words: list[str] = []
    if step.attempts != 1:
        words.append(f"{step.attempts} attempts")
    if step.timeout is not None:
        words.append(f"timeout {duration(step.timeout)}")
    if step.pivot:
        words.append("pivot")
    return ", ".join(words)
