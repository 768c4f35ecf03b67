"""Reading signatures and annotations of user code, once, at assembly.

Law: what a parameter or a result must be is decided here and never guessed again at run time.
Annotations are resolved in the module's globals, the locals of whoever assembles and the classes the
function is nested in; what stays unresolved, is missing, is ``Any`` or is ambiguous is a fault.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, cast

import msgspec

from flowlet.core.codec import Codec
from flowlet.core.faults import Faults


class _Provided:
    """The type of `provided`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "provided"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # what Python itself looks for
            raise AttributeError(name)
        raise AttributeError(
            f"{name!r} was asked of a parameter `= provided` that nobody has filled: flowlet fills it in a run; a call "
            "outside of one has to pass the value"
        )


provided: Final[Any] = cast(Any, _Provided())
"""The default of a parameter that flowlet fills in, by its annotation.

Example:
    >>> from flowlet import Run, provided, step
    >>> @step
    ... async def charge(amount: int, run: Run = provided) -> str:
    ...     return f"{run.idempotency_key}: {amount}"
"""


class Parameter(msgspec.Struct, frozen=True):
    """One parameter of a user's function.

    Attributes:
        annotation: the resolved type; `MISSING` when there is none.
        required: it has no default.
        provided: its default is `provided`.
    """

    name: str
    annotation: Any
    kind: Any
    required: bool
    provided: bool
    default: Any = inspect.Parameter.empty


MISSING: Final = inspect.Parameter.empty


class UNRESOLVED:
    """The annotation of a function or class of which one annotation cannot be resolved; that is noted already."""


class Signature(msgspec.Struct, frozen=True):
    """The parameters (without ``self``) and the result of a user's function.

    Attributes:
        inputs: the parameters that the caller gives, that is all but the provided ones.
        variadic: it takes ``*args`` or ``**kwargs``.
    """

    parameters: tuple[Parameter, ...]
    result: Any
    variadic: bool

    @property
    def inputs(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if not p.provided)

    @property
    def providers(self) -> tuple[Parameter, ...]:
        return tuple(p for p in self.parameters if p.provided)


def caller_namespace(depth: int) -> dict[str, Any]:
    """Copy the local names of the function ``depth`` frames above the caller of this one."""
    return dict(sys._getframe(depth + 1).f_locals)


def resolve_hints(thing: Any, namespace: Mapping[str, Any], faults: Faults) -> dict[str, Any]:
    """Resolve the annotations of a function or class, noting the ones that cannot be."""
    try:
        return typing.get_type_hints(thing, localns=_scope(thing, namespace), include_extras=True)
    except Exception as error:
        faults.add(thing, f"an annotation cannot be resolved ({error}); import the name where the function is defined")
        return dict.fromkeys(getattr(thing, "__annotations__", ()), UNRESOLVED)


def _scope(thing: Any, namespace: Mapping[str, Any]) -> dict[str, Any]:
    """Names an annotation may use beyond its globals: the assembler's locals and enclosing classes."""
    scope = dict(namespace)
    module = sys.modules.get(getattr(thing, "__module__", ""), None)
    owner: Any = module
    for part in getattr(thing, "__qualname__", "").split(".")[:-1]:
        owner = scope.get(part) if part in scope else getattr(owner, part, None)
        if isinstance(owner, type):
            scope.update(vars(owner))
    closure = getattr(thing, "__closure__", None)
    if closure:
        names = thing.__code__.co_freevars
        scope.update({n: c.cell_contents for n, c in zip(names, closure, strict=True) if _filled(c)})
    if not isinstance(thing, type):
        # A name of the function's own module wins over the assembler's local of the same name.
        own = getattr(thing, "__globals__", {})
        scope = {k: own.get(k, v) if k in own else v for k, v in scope.items()}
    return scope


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - reading an empty cell raises
    except ValueError:
        return False
    return True


def read_signature(
    function: Callable[..., Any], namespace: Mapping[str, Any], faults: Faults, *, method: bool = False
) -> Signature:
    """Read a function's signature with resolved annotations; ``method`` leaves out the first parameter."""
    raw = list(inspect.signature(function).parameters.values())
    hints = resolve_hints(function, namespace, faults)
    rest = raw[1:] if method else raw
    variadic = any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in rest)
    parameters = tuple(
        Parameter(
            name=p.name,
            annotation=hints.get(p.name, MISSING),
            kind=p.kind,
            required=p.default is p.empty,
            provided=p.default is provided,
            default=p.default,
        )
        for p in rest
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    )
    return Signature(parameters, hints.get("return", MISSING), variadic)


def codec_for(annotation: Any, where: object, what: str, faults: Faults, hint: str = "") -> Codec[Any] | None:
    """Build the codec of a type that flowlet stores, noting why there is none.

    Args:
        hint: what else may be meant by a type that cannot be stored.
    """
    if annotation is UNRESOLVED:
        return None
    if annotation is MISSING:
        faults.add(where, f"{what} has no annotation; annotate it, so that a replay gives back the same type")
        return None
    if annotation is Any:
        faults.add(where, f"{what} is annotated Any; name the type, so that a replay gives back the same one")
        return None
    try:
        codec: Codec[Any] = Codec(annotation)
        foreign = _foreign_type(annotation)
    except (TypeError, ValueError, NotImplementedError, NameError) as error:
        faults.add(where, f"{what} has a type that cannot be stored or is ambiguous: {error}{hint}")
        return None
    if foreign is not None:
        name = getattr(foreign, "__qualname__", repr(foreign))
        faults.add(where, f"{what} has a type that cannot be stored: {name}; make it a Struct or a dataclass{hint}")
        return None
    return codec


def _foreign_type(annotation: Any) -> Any:
    """Return a class inside the type that msgspec has no representation for, or None."""
    import msgspec.inspect

    seen: set[int] = set()
    stack: list[Any] = [msgspec.inspect.type_info(annotation)]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, msgspec.inspect.CustomType):
            return node.cls
        if isinstance(node, (tuple, list)):
            stack.extend(node)
        elif isinstance(node, msgspec.Struct):
            stack.extend(v for v in (getattr(node, f) for f in node.__struct_fields__) if _is_node(v))
    return None


def _is_node(value: object) -> bool:
    return isinstance(value, (tuple, msgspec.Struct))
