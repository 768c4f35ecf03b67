"""The part of ECMAScript that the scripts of SCXML suites use.

Law: a script is read into functions of a `Scope` and run by calling them; nothing is evaluated by Python. Whatever is
wrong with one, when it is read or when it runs, is a `ScriptError` when it is used. Knows nothing of charts.
"""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol, cast


class ScriptError(Exception):
    """A script cannot be read or run; SCXML's ``error.execution``."""


class Undefined:
    """The value of what has none."""

    def __repr__(self) -> str:
        return "undefined"

    def __bool__(self) -> bool:
        return False


UNDEFINED = Undefined()


class Scope(Protocol):
    """Where names are looked up."""

    def get(self, name: str) -> Any: ...
    def put(self, name: str, value: Any) -> None: ...


Code = Callable[[Scope], Any]


class Local:
    """The names of a function's call; others are looked up where it was defined."""

    def __init__(self, outer: Scope, names: dict[str, Any]) -> None:
        self._outer, self.names = outer, names

    def get(self, name: str) -> Any:
        return self.names[name] if name in self.names else self._outer.get(name)

    def put(self, name: str, value: Any) -> None:
        if name in self.names:
            self.names[name] = value
        else:
            self._outer.put(name, value)


class _Return(Exception):
    def __init__(self, value: Any) -> None:
        self.value = value


class Function(NamedTuple):
    """A declared function."""

    name: str
    parameters: Sequence[str]
    body: Code

    def bind(self, scope: Scope) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            given = [*args, *[UNDEFINED] * len(self.parameters)]
            try:
                self.body(Local(scope, {"arguments": list(args), **dict(zip(self.parameters, given, strict=False))}))
            except _Return as end:
                return end.value
            return UNDEFINED

        return call


class Expression(NamedTuple):
    """A parsed expression; ``put`` assigns to it, if it is a place."""

    get: Code
    put: Callable[[Scope, Any], None] | None = None
    name: str | None = None


_TOKEN = re.compile(
    r"(?P<space>\s+|//[^\n]*|/\*.*?\*/)"
    r"|(?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<string>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")"
    r"|(?P<name>[A-Za-z_$][\w$]*)"
    r"|(?P<mark>===|!==|==|!=|<=|>=|&&|\|\||\+\+|--|[-+*/%]=|[-+*/%<>=!?:;,.(){}\[\]])",
    re.DOTALL,
)


class Token(NamedTuple):
    kind: str
    text: str


def tokens_of(text: str) -> list[Token]:
    """Split a script into tokens, closed by one of the kind ``end``."""
    found: list[Token] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ScriptError(f"unexpected character {text[position]!r}")
        position = match.end()
        if match.lastgroup != "space":
            found.append(Token(str(match.lastgroup), match.group()))
    return [*found, Token("end", "the end")]


def number(value: Any) -> float | int:
    """Convert a value to a number as the script language does."""
    if value is UNDEFINED or isinstance(value, (dict, list)) or callable(value):
        return math.nan
    if value is None or value == "":
        return 0
    try:
        return _whole(float(value))
    except ValueError:
        return math.nan


def _whole(value: float) -> float | int:
    return int(value) if math.isfinite(value) and value == int(value) else value


def text_of(value: Any) -> str:
    """Convert a value to a text as the script language does."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    return "[object Object]" if isinstance(value, dict) else str(value)


def is_truthy(value: Any) -> bool:
    """Judge a value as a condition."""
    return isinstance(value, (dict, list)) or (bool(value) and value == value)


def _add(a: Any, b: Any) -> Any:
    if any(isinstance(v, (str, dict, list)) for v in (a, b)):
        return text_of(a) + text_of(b)
    return _whole(number(a) + number(b))


def _divide(a: Any, b: Any) -> float | int:
    above, below = number(a), number(b)
    if below == 0:
        return math.nan if above == 0 or above != above else math.copysign(math.inf, above)
    return _whole(above / below)


def _remainder(a: Any, b: Any) -> float | int:
    above, below = number(a), number(b)
    return math.nan if below == 0 else _whole(math.fmod(above, below))


def _identical(a: Any, b: Any) -> bool:
    if isinstance(a, (dict, list)) or isinstance(b, (dict, list)):
        return a is b
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def _equal(a: Any, b: Any) -> bool:
    if a in (None, UNDEFINED) or b in (None, UNDEFINED):
        return a in (None, UNDEFINED) and b in (None, UNDEFINED)
    return _identical(a, b) or (type(a) is not type(b) and number(a) == number(b))


def _compare(less: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compare(a: Any, b: Any) -> bool:
        both_texts = isinstance(a, str) and isinstance(b, str)
        return less(a, b) if both_texts else less(number(a), number(b))

    return compare


BINARY: Mapping[str, tuple[int, Callable[[Any, Any], Any]]] = {
    "==": (5, _equal),
    "!=": (5, lambda a, b: not _equal(a, b)),
    "===": (5, _identical),
    "!==": (5, lambda a, b: not _identical(a, b)),
    "<": (6, _compare(lambda a, b: a < b)),
    ">": (6, _compare(lambda a, b: a > b)),
    "<=": (6, _compare(lambda a, b: a <= b)),
    ">=": (6, _compare(lambda a, b: a >= b)),
    "+": (7, _add),
    "-": (7, lambda a, b: _whole(number(a) - number(b))),
    "*": (8, lambda a, b: _whole(number(a) * number(b))),
    "/": (8, _divide),
    "%": (8, _remainder),
}
"""Operators of two operands, with how tightly they bind."""

UNARY: Mapping[str, Callable[[Any], Any]] = {
    "!": lambda a: not is_truthy(a),
    "-": lambda a: -number(a),
    "+": number,
    "typeof": lambda a: _type_name(a),  # noqa: PLW0108 - defined below
}


def _type_name(value: Any) -> str:
    kinds = [(Undefined, "undefined"), (bool, "boolean"), ((int, float), "number"), (str, "string")]
    found = next((name for kind, name in kinds if isinstance(value, cast("Any", kind))), None)
    return found or ("function" if callable(value) else "object")


def _member(owner: Any, key: Any) -> Any:
    if owner is UNDEFINED or owner is None:
        raise ScriptError(f"cannot read {text_of(key)!r} of {text_of(owner)}")
    if isinstance(owner, (list, str)):
        if key == "length":
            return len(owner)
        return owner[key] if isinstance(key, int) and 0 <= key < len(owner) else UNDEFINED
    return owner.get(text_of(key), UNDEFINED) if isinstance(owner, Mapping) else UNDEFINED


def _put_member(owner: Any, key: Any, value: Any) -> None:
    if isinstance(owner, list) and isinstance(key, int):
        owner[key : key + 1] = [value]
    elif isinstance(owner, dict):
        owner[text_of(key)] = value
    else:
        raise ScriptError(f"cannot set {text_of(key)!r} of {text_of(owner)}")


class Parser:
    """A Pratt parser for the part of ECMAScript that the suites use; it makes functions of a `Scope`."""

    def __init__(self, text: str) -> None:
        self._tokens = tokens_of(text)
        self._at = 0
        self.functions: dict[str, Function] = {}

    # Tokens
    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _advance(self) -> Token:
        token = self._next
        self._at += token.kind != "end"
        return token

    def _sees(self, *texts: str) -> bool:
        return self._next.kind in ("mark", "name") and self._next.text in texts

    def _accept(self, text: str) -> bool:
        seen = self._sees(text)
        self._at += seen
        return seen

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            self._refuse(f", expected {text!r}")

    def _refuse(self, more: str = "") -> NoReturn:
        raise ScriptError(f"unexpected {self._next.text!r}{more}")

    def _name(self) -> str:
        if self._next.kind != "name":
            self._refuse()
        return self._advance().text

    # Statements
    def program(self) -> Code:
        """Parse statements up to the end; declared functions are collected in `functions`."""
        statements: list[Code] = []
        while self._next.kind != "end":
            statements.append(self._statement())
        return _sequence(statements)

    def _statement(self) -> Code:
        if self._accept("{"):
            return self._block()
        if self._accept(";"):
            return _sequence([])
        if self._sees("function"):
            return self._declaration()
        if self._accept("if"):
            return self._if()
        if self._accept("return"):
            return self._return()
        found = self._variables() if self._accept("var") else self._expression().get
        self._accept(";")
        return found

    def _block(self) -> Code:
        statements: list[Code] = []
        while not self._accept("}"):
            if self._next.kind == "end":
                self._refuse()
            statements.append(self._statement())
        return _sequence(statements)

    def _declaration(self) -> Code:
        function = self._function()
        self.functions[function.name] = function
        return lambda scope: _declare(scope, function.name, function.bind(scope))

    def _function(self) -> Function:
        self._expect("function")
        name = "" if self._sees("(") else self._name()
        self._expect("(")
        parameters: list[str] = []
        while not self._accept(")"):
            parameters.append(self._name())
            self._accept(",")
        self._expect("{")
        return Function(name, parameters, self._block())

    def _if(self) -> Code:
        self._expect("(")
        condition = self._expression().get
        self._expect(")")
        then = self._statement()
        other = self._statement() if self._accept("else") else _sequence([])
        return lambda scope: then(scope) if is_truthy(condition(scope)) else other(scope)

    def _return(self) -> Code:
        value = constant(UNDEFINED).get if self._sees(";", "}") else self._expression().get
        self._accept(";")

        def leave(scope: Scope) -> None:
            raise _Return(value(scope))

        return leave

    def _variables(self) -> Code:
        statements: list[Code] = []
        while True:
            statements.append(self._variable())
            if not self._accept(","):
                return _sequence(statements)

    def _variable(self) -> Code:
        name = self._name()
        value = self._expression().get if self._accept("=") else constant(UNDEFINED).get
        return lambda scope: _declare(scope, name, value(scope))

    # Expressions
    def expression(self) -> Expression:
        """Parse one expression up to the end."""
        found = self._expression()
        if self._next.kind != "end":
            self._refuse()
        return found

    def _expression(self) -> Expression:
        left = self._condition()
        if not self._sees("=", "+=", "-=", "*=", "/=", "%="):
            return left
        operator = self._advance().text
        put = left.put or self._refuse()
        right = self._expression().get
        if operator != "=":
            _, combine = BINARY[operator[0]]
            get, plain = left.get, right

            def right(scope: Scope) -> Any:
                return combine(get(scope), plain(scope))

        return Expression(lambda scope: _assign(put, scope, right(scope)))

    def _condition(self) -> Expression:
        condition = self._logical("||", lambda: self._logical("&&", lambda: self._binary(0)))
        if not self._accept("?"):
            return condition
        then = self._expression().get
        self._expect(":")
        other = self._expression().get
        return Expression(lambda scope: then(scope) if is_truthy(condition.get(scope)) else other(scope))

    def _logical(self, mark: str, operand: Callable[[], Expression]) -> Expression:
        left = operand()
        while self._accept(mark):
            left = _shortcut(left.get, operand().get, stop_at=mark == "||")
        return left

    def _binary(self, tightness: int) -> Expression:
        left = self._unary()
        while self._next.kind == "mark" and BINARY.get(self._next.text, (0,))[0] > tightness:
            binds, combine = BINARY[self._advance().text]
            left = _combined(combine, left.get, self._binary(binds).get)
        return left

    def _unary(self) -> Expression:
        if self._sees("++", "--"):
            step = 1 if self._advance().text == "++" else -1
            return _stepped(self._unary(), step, self, old=False)
        if self._sees(*UNARY):
            operator = self._advance().text
            operand = self._unary()
            if operator == "typeof" and operand.name is not None:
                return _type_of_name(operand)
            apply = UNARY[operator]
            return Expression(lambda scope: apply(operand.get(scope)))
        return self._postfix(self._primary())

    def _postfix(self, left: Expression) -> Expression:
        while True:
            if self._accept("."):
                left = _property(left, constant(self._name()).get)
            elif self._accept("["):
                left = _property(left, self._expression().get)
                self._expect("]")
            elif self._accept("("):
                left = _call(left, self._list(")"))
            elif self._sees("++", "--"):
                left = _stepped(left, 1 if self._advance().text == "++" else -1, self, old=True)
            else:
                return left

    def _primary(self) -> Expression:
        if self._sees("function"):
            function = self._function()
            return Expression(function.bind)
        token = self._advance()
        if token.kind == "number":
            return constant(_whole(float.fromhex(token.text) if token.text[:2].lower() == "0x" else float(token.text)))
        if token.kind == "string":
            return constant(re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), token.text[1:-1]))
        if token.kind == "name":
            return constant(_WORDS[token.text]) if token.text in _WORDS else _variable(token.text)
        if token.text == "(":
            found = self._expression()
            self._expect(")")
            return found
        if token.text == "[":
            items = self._list("]")
            return Expression(lambda scope: [item(scope) for item in items])
        if token.text == "{":
            return self._object()
        raise ScriptError(f"unexpected {token.text!r}")

    def _list(self, end: str) -> list[Code]:
        items: list[Code] = []
        while not self._accept(end):
            items.append(self._expression().get)
            if not self._sees(end):
                self._expect(",")
        return items

    def _object(self) -> Expression:
        items: dict[str, Code] = {}
        while not self._accept("}"):
            token = self._advance()
            if token.kind not in ("name", "string", "number"):
                raise ScriptError(f"unexpected {token.text!r}")
            self._expect(":")
            items[token.text.strip("'\"")] = self._expression().get
            if not self._sees("}"):
                self._expect(",")
        return Expression(lambda scope: {name: item(scope) for name, item in items.items()})


_WORDS: Mapping[str, Any] = {"true": True, "false": False, "null": None, "undefined": UNDEFINED}


def constant(value: Any) -> Expression:
    """Make the expression that always has one value."""
    return Expression(lambda scope: value)


def _variable(name: str) -> Expression:
    return Expression(lambda scope: scope.get(name), lambda scope, value: scope.put(name, value), name)


def _property(owner: Expression, key: Code) -> Expression:
    def put(scope: Scope, value: Any) -> None:
        changed = copy.copy(owner.get(scope))  # data are values: what was read before stays as it was
        _put_member(changed, key(scope), value)
        if owner.put is not None:
            owner.put(scope, changed)

    return Expression(lambda scope: _member(owner.get(scope), key(scope)), put)


def _combined(combine: Callable[[Any, Any], Any], left: Code, right: Code) -> Expression:
    return Expression(lambda scope: combine(left(scope), right(scope)))


def _shortcut(left: Code, right: Code, *, stop_at: bool) -> Expression:
    def get(scope: Scope) -> Any:
        value = left(scope)
        return value if is_truthy(value) is stop_at else right(scope)

    return Expression(get)


def _stepped(place: Expression, step: int, parser: Parser, *, old: bool) -> Expression:
    put = place.put or parser._refuse()

    def get(scope: Scope) -> Any:
        before = number(place.get(scope))
        put(scope, before + step)
        return before if old else before + step

    return Expression(get)


def _type_of_name(operand: Expression) -> Expression:
    def get(scope: Scope) -> str:
        try:
            return _type_name(operand.get(scope))
        except ScriptError:  # an unknown name is no error here
            return "undefined"

    return Expression(get)


def _call(target: Expression, arguments: Sequence[Code]) -> Expression:
    def get(scope: Scope) -> Any:
        function = target.get(scope)
        if not callable(function):
            raise ScriptError(f"{target.name or 'this'} is not a function")
        try:
            return function(*[argument(scope) for argument in arguments])
        except RecursionError as error:
            raise ScriptError("too much recursion") from error

    return Expression(get)


def _sequence(statements: Sequence[Code]) -> Code:
    def run(scope: Scope) -> None:
        for statement in statements:
            statement(scope)

    return run


def _declare(scope: Scope, name: str, value: Any) -> None:
    if isinstance(scope, Local):
        scope.names[name] = value
    else:
        scope.put(name, value)


def _assign(put: Callable[[Scope, Any], None], scope: Scope, value: Any) -> Any:
    put(scope, value)
    return value


def _stringify(value: Any, *_: Any) -> str:
    return json.dumps(value, default=lambda v: None)


BUILTINS: Mapping[str, Any] = {
    "Math": {"pow": lambda a, b: _whole(float(number(a)) ** number(b)), "abs": lambda a: abs(number(a)),
             "floor": lambda a: math.floor(number(a)), "max": max, "min": min},
    "JSON": {"stringify": _stringify},
    "isNaN": lambda value=UNDEFINED: math.isnan(number(value)),
    "NaN": math.nan,
    "Infinity": math.inf,
}  # fmt: skip


def read_expression(text: str) -> Expression:
    """Parse an expression; one that cannot be read raises whenever it is used."""
    try:
        return Parser(text).expression()
    except ScriptError as error:
        return _broken(error)


def read_script(text: str) -> tuple[Code, Mapping[str, Function]]:
    """Parse a script; return it with the functions that it declares."""
    parser = Parser(text)
    try:
        return parser.program(), parser.functions
    except ScriptError as error:
        return _broken(error).get, {}


def _broken(error: ScriptError) -> Expression:
    def get(scope: Scope) -> NoReturn:
        raise ScriptError(str(error))

    def put(scope: Scope, value: Any) -> NoReturn:
        raise ScriptError(str(error))

    return Expression(get, put)
