"""From what users add to a graph to its nodes: which parameters take what of the state, and what a result says of it.

Law: a fault is noted and the rest is looked at all the same. A function that takes one thing which is not named like a
field takes the state; otherwise its parameters are fields.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Optional

import msgspec

from flowlet.core.annotations import MISSING, Parameter, Signature, codec_for, read_signature
from flowlet.core.codec import Codec
from flowlet.core.compatibility import may_take, type_name
from flowlet.core.definitions import CHILD
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.graph_fields import StateType, check_change_type, check_merge
from flowlet.core.graph_plan import GraphNode
from flowlet.core.graph_tokens import ALL
from flowlet.core.marks import StepMark
from flowlet.core.needs import refuse_provided
from flowlet.core.retry import Seconds, policy_for, seconds
from flowlet.core.steps import StepDefinition, build_step, plain_mark
from flowlet.errors import DefinitionError


class NodeDraft(msgspec.Struct, eq=False, kw_only=True):
    """A node as it was added.

    Attributes:
        thing: a function, an assembled definition, or another graph's draft; None for a pause.
        type: what a pause takes.
        namespace: the names its annotations may use.
    """

    name: str
    thing: Any = None
    type: Any = None
    retry: Any = None
    timeout: Seconds | None = None
    join: Any = "all"
    merge: Any = None
    namespace: Mapping[str, Any] = {}


def check_name(where: str, name: object, faults: Faults) -> None:
    """Note why a node cannot have a name: keys are built from it, with the characters that it must not have."""
    if not isinstance(name, str) or not name or any(c in "#:~/.[]" for c in name) or name == "<lambda>":
        faults.add(where, f"a node's name is a text without # : ~ / . [ ], not {name!r}; give name=")


def read_join(where: str, join: object, faults: Faults) -> int:
    """Return a ``join=`` as a number of tokens."""
    if join == "all":
        return ALL
    if join == "any":
        return 1
    if isinstance(join, int) and not isinstance(join, bool) and join >= 1:
        return join
    faults.add(where, f'join= is "all", "any" or a whole number of at least 1, not {join!r}')
    return ALL


def build_pause(where: str, draft: NodeDraft, state: StateType, faults: Faults) -> GraphNode:
    """Make the node that waits for a signal."""
    payload = codec_for(draft.type, where, "type=", faults)
    check_merge(where, draft.merge, faults)
    if draft.merge is None and payload is not None:
        check_change_type(where, draft.type, state, "takes", faults)
    join = read_join(where, draft.join, faults)
    return GraphNode(name=draft.name, payload=payload or Codec(Any), merge=draft.merge, join=join)


def build_node(where: str, draft: NodeDraft, state: StateType, faults: Faults) -> GraphNode | None:
    """Make the node that executes a function, or has a run of another definition made."""
    join = read_join(where, draft.join, faults)
    check_merge(where, draft.merge, faults)
    child = getattr(draft.thing, CHILD, None)
    if isinstance(child, StepDefinition):
        step: StepDefinition | None = _adapt(where, draft, child, faults)
        owner = None
    elif not callable(draft.thing) or isinstance(draft.thing, type):
        faults.add(where, f"{draft.thing!r} is no function, so it cannot be a node")
        return None
    else:
        step, owner = _build_step(where, draft, state, faults)
    if step is None:
        return None
    takes = _parameters(where, step, state, faults)
    if draft.merge is None:
        check_change_type(where, step.result.type, state, "returns", faults)
        step = msgspec.structs.replace(step, result=state.shown, scalar=None)
    return GraphNode(name=draft.name, step=step, owner=owner, takes=takes, merge=draft.merge, join=join)


def _adapt(where: str, draft: NodeDraft, child: StepDefinition, faults: Faults) -> StepDefinition:
    """Make a step of another definition, which has retries and limits of its own."""
    if draft.retry is not None or draft.timeout is not None:
        faults.add(where, "retry= and timeout= go with a function; a definition has its own in its steps")
    return msgspec.structs.replace(child, name=draft.name)


def _build_step(
    where: str, draft: NodeDraft, state: StateType, faults: Faults
) -> tuple[StepDefinition | None, object | None]:
    """Resolve the step that a function is, or is marked as; return it with the object that it is a method of."""
    mark, function = plain_mark(draft.thing), draft.thing
    owner = getattr(function, "__self__", None) if mark.method else None
    if mark.method and owner is None:
        faults.add(where, f"is a method; add that of an object, `thing.{mark.name}`")
        return None, None
    before = len(faults.problems)
    mark = _configure(where, draft, mark, faults)
    read = read_signature(mark.function, draft.namespace, faults, method=owner is not None)
    signature = _complete(read, state, draft.merge is None)
    step = build_step(mark, draft.namespace, faults, method=owner is not None, signature=signature)
    if step is None or len(faults.problems) > before:
        return None, None
    if step.compensation is not None:
        faults.add(where, f"step {step.name!r} has a compensation, but a graph undoes nothing; make it a saga")
    if step.pivot:
        faults.add(where, f"step {step.name!r} is a pivot, but a graph never goes back; make it a saga")
    if draft.merge is None:
        check_change_type(where, read.result, state, "returns", faults)
    return step, owner


def _configure(where: str, draft: NodeDraft, mark: StepMark, faults: Faults) -> StepMark:
    """Put what was said when a node was added in the place of what its mark says."""
    retry, timeout = mark.retry, mark.timeout
    try:
        retry = retry if draft.retry is None else policy_for(draft.retry)
        timeout = timeout if draft.timeout is None else seconds(draft.timeout, "timeout")
    except DefinitionError as error:
        faults.extend(f"{where}: {problem}" for problem in error.problems)
    if mark.at_most_once and draft.retry is not None:
        faults.add(where, "at_most_once=True excludes retry=; leave one out")
    return msgspec.structs.replace(mark, name=draft.name, retry=retry, timeout=timeout)


def _complete(signature: Signature, state: StateType, is_change: bool) -> Signature:
    """Add what need not be said in a graph: what parameters take, and that a dict is returned.

    Parameters at the end that are no fields keep their defaults, as a function made in a loop needs them.
    """
    inputs = list(signature.inputs)
    while len(inputs) > 1 and not inputs[-1].required and inputs[-1].name not in state.fields:
        inputs.pop()
    is_whole = len(inputs) == 1 and inputs[0].name not in state.fields
    for place, parameter in enumerate(inputs):
        if parameter.annotation in (MISSING, Any) and (is_whole or parameter.name in state.fields):
            annotation = state.cls if is_whole else state.fields[parameter.name].annotation
            inputs[place] = msgspec.structs.replace(parameter, annotation=annotation)
    taken = {p.name: p for p in (*inputs, *signature.providers)}
    parameters = tuple(taken[p.name] for p in signature.parameters if p.name in taken)
    result = Optional[dict[str, Any]] if is_change else signature.result  # noqa: UP045 - a type at run time
    return Signature(parameters, result, signature.variadic)


def _parameters(where: str, step: StepDefinition, state: StateType, faults: Faults) -> tuple[str, ...] | None:
    """Return the fields that a step's parameters take; None if it takes the state."""
    inputs: tuple[Parameter, ...] = step.inputs
    if len(inputs) == 1 and inputs[0].annotation is state.cls:
        return None
    for parameter in inputs:
        name = parameter.name
        field = state.fields.get(name)
        if field is not None:
            if not may_take(field.annotation, parameter.annotation):
                given, wanted = type_name(field.annotation), type_name(parameter.annotation)
                faults.add(where, f"parameter {name!r} is annotated {wanted}, but the field is {given}")
        else:
            faults.add(
                where,
                f"parameter {name!r} is no field of {describe(state.cls)}{nearest(name, state.fields)}; a node takes "
                f"the state in one parameter, or fields in parameters of their names",
            )
    return tuple(p.name for p in inputs)


def check_when(where: str, when: Callable[..., Any] | None, faults: Faults) -> None:
    """Note why a function cannot be the condition of an edge."""
    if when is None:
        return
    if not callable(when) or inspect.iscoroutinefunction(when):
        faults.add(where, "when= must be a plain function of the state; do slow work in a node")
        return
    refuse_provided(when, where, f"when= {describe(when)}", "ask in a node, and keep the answer in the state", faults)
    try:
        inspect.signature(when).bind(None)
    except TypeError:
        faults.add(where, f"when= {describe(when)} must take one argument, the state")
    except ValueError:  # of a builtin that has no signature
        return
