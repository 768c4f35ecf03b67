"""Functions that a pipeline calls beside its steps: what handles a failure, what is done in any case.

Law: each takes its arguments by name, from inputs, results and the exception; where they come from is worked out at
assembly and is numbers and words afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from flowlet.core.annotations import Signature
from flowlet.core.codec import Codec
from flowlet.core.steps import StepDefinition, plain_mark
from flowlet.core.wiring import Wiring

Source: TypeAlias = int | Literal["error", "item"]
"""Where an argument comes from: as in `Wired`, or the exception, or the item that a step has failed with."""


def known_sources(wiring: Wiring) -> dict[str, int]:
    """Return where inputs and results are found, by name; a step's name hides an input's."""
    found = {p.name: -1 - i for i, p in enumerate(wiring.inputs)}
    found.update((w.step.name, i) for i, w in enumerate(wiring.steps))
    return found


def build_side_step(name: str, policy: Any, signature: Signature, names: Sequence[str]) -> StepDefinition:
    """Describe a function that is called beside the steps, with arguments by their names."""
    mark = plain_mark(policy)
    by_name = {p.name: p for p in signature.inputs}
    positional = [p for p in signature.inputs if p.kind is inspect.Parameter.POSITIONAL_ONLY and p.name in names]
    return StepDefinition(
        name=name,
        function=mark.function,
        is_async=inspect.iscoroutinefunction(mark.function),
        method=False,
        inputs=tuple(by_name[n] for n in names),
        providers=signature.providers,
        result=Codec(Any),
        input=Codec(Any),
        signature=inspect.Signature(),
        arity=len(names),
        kinds=(),
        scalar=None,
        positional=len(positional),
        keywords=tuple(names[len(positional) :]),
        retry=mark.retry,
        timeout=mark.timeout,
    )
