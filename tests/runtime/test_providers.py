"""What fills parameters ``= provided``: values, factories, their closing, and what nothing provides."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, NewType, Protocol

import anyio
import pytest

from flowlet import (
    Flowlet,
    Retry,
    Run,
    all_of,
    can,
    compensate,
    guard,
    level,
    provided,
    state,
    step,
    transition,
)
from flowlet.errors import ConfigError, DefinitionError, MachineError, ProviderFailed, RunParked

pytestmark = pytest.mark.anyio

log: list[str] = []


@pytest.fixture(autouse=True)
def _empty() -> None:
    log.clear()


class Config:
    url = "https://pay.example"


class Gateway:
    def __init__(self, name: str = "visa") -> None:
        self.name = name


class Ledger:
    def __init__(self, gateway: Gateway = provided) -> None:
        self.gateway = gateway


class Session:
    """A context manager that gives itself."""

    def __init__(self) -> None:
        self.open = 0

    async def __aenter__(self) -> Session:
        self.open += 1
        log.append("enter")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.open -= 1
        log.append("exit")


@step
async def name_of(gateway: Gateway = provided) -> str:
    return gateway.name


@step
async def ask(session: Session = provided) -> int:
    return session.open


# ---------------------------------------------------------------- factories
def make_plain() -> Gateway:
    log.append("made")
    return Gateway()


async def make_async() -> Gateway:
    await anyio.lowlevel.checkpoint()
    log.append("made")
    return Gateway()


def make_yielding() -> Iterator[Gateway]:
    log.append("made")
    yield Gateway()
    log.append("closed")


async def make_async_yielding() -> AsyncIterator[Gateway]:
    log.append("made")
    yield Gateway()
    await anyio.lowlevel.checkpoint()
    log.append("closed")


@contextmanager
def make_managed() -> Iterator[Gateway]:
    log.append("made")
    yield Gateway()
    log.append("closed")


@asynccontextmanager
async def make_async_managed() -> AsyncIterator[Gateway]:
    log.append("made")
    yield Gateway()
    log.append("closed")


def make_manager() -> AbstractAsyncContextManager[Gateway]:
    return make_async_managed()


async def make_awaited_manager() -> Awaitable[Gateway]:
    return make_async()


class Shop:
    async def gateway(self) -> Gateway:
        return await make_async()


PLAIN = [make_plain, make_async, Shop().gateway]
CLOSING = [make_yielding, make_async_yielding, make_managed, make_async_managed, make_manager]


@pytest.mark.parametrize("factory", [*PLAIN, *CLOSING], ids=lambda f: f.__name__)
@pytest.mark.parametrize("is_alone", [True, False])
async def test_what_makes_a_value(flow: Flowlet, factory: Callable[..., Any], is_alone: bool) -> None:
    if is_alone:
        assert flow.provide(factory) is factory
    else:
        flow.provide(Gateway, factory)
    twice = flow.saga("twice", name_of)
    for _ in range(2):  # anew each time it is entered
        async with flow:
            assert log == []
            assert await twice() == "visa"
            assert await flow.bulk(in_bulk, [1, 2]).values() == ["visa", "visa"]
            assert log == ["made"]
        assert log == (["made", "closed"] if factory in CLOSING else ["made"])
        log.clear()


async def in_bulk(n: int, gateway: Gateway = provided) -> str:
    return gateway.name


async def test_what_a_factory_takes_is_provided_too_and_closed_after_it(flow: Flowlet) -> None:
    flow.provide(Config)

    @flow.provide
    async def gateway(config: Config = provided, note: str = "own default") -> AsyncIterator[Gateway]:
        log.append(f"gateway of {config.url}, {note}")
        yield Gateway()
        log.append("gateway closed")

    @flow.provide
    def ledger(gateway: Gateway = provided, here: Flowlet = provided) -> Iterator[Ledger]:
        assert here is flow
        yield Ledger(gateway)
        log.append("ledger closed")

    flow.provide(str, functools.partial(lambda name: name, "partial"))

    @step
    async def use(ledger: Ledger = provided, name: str = provided) -> str:
        return f"{ledger.gateway.name} {name}"

    saga = flow.saga("saga", use)
    async with flow:
        assert await saga() == "visa partial"
    assert log == [f"gateway of {Config.url}, own default", "ledger closed", "gateway closed"]


async def test_a_class_takes_what_its_init_says_and_a_context_manager_is_entered(flow: Flowlet) -> None:
    for cls in (Gateway, Ledger, Session):
        assert flow.provide(cls) is cls

    @flow.saga
    async def body(ledger: Ledger = provided, gateway: Gateway = provided, session: Session = provided) -> int:
        assert ledger.gateway is gateway
        return session.open

    async with flow:
        assert await body() == 1
    assert log == ["enter", "exit"]


async def test_a_given_value_is_neither_entered_nor_closed(flow: Flowlet) -> None:
    flow.provide(Session, Session())
    saga = flow.saga("saga", ask)
    async with flow:
        assert await saga() == 0
    assert log == []


async def test_many_at_once_wait_for_the_same_value_and_a_cancelled_one_does_not_stop_it(flow: Flowlet) -> None:
    began, go = anyio.Event(), anyio.Event()

    @flow.provide
    async def gateway() -> Gateway:
        began.set()
        await go.wait()
        log.append("made")
        return Gateway()

    saga = flow.saga("saga", name_of)
    names: list[str] = []

    async def one() -> None:
        names.append(await saga())

    async with flow:
        async with anyio.create_task_group() as first:
            first.start_soon(one)
            await began.wait()
            first.cancel_scope.cancel()
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one)
            await anyio.wait_all_tasks_blocked()
            go.set()
    assert names == ["visa"] * 5
    assert log == ["made"]


async def test_a_task_group_may_live_in_a_value(flow: Flowlet) -> None:
    @flow.provide
    async def gateway() -> AsyncIterator[Gateway]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            yield Gateway()
            tasks.cancel_scope.cancel()
        log.append("closed")

    saga = flow.saga("saga", name_of)
    await flow.__aenter__()

    async def leave() -> None:  # in another task than the one that entered, as frameworks do
        await flow.__aexit__(None, None, None)

    assert await saga() == "visa"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(leave)
    assert log == ["closed"]


async def test_closed_though_leaving_is_cancelled(flow: Flowlet) -> None:
    @flow.provide
    async def gateway() -> AsyncIterator[Gateway]:
        yield Gateway()
        await anyio.sleep(0.02)
        log.append("closed")

    saga = flow.saga("saga", name_of)
    with anyio.CancelScope() as scope:
        async with flow:
            await saga()
            scope.cancel()
    assert log == ["closed"]


async def test_one_that_cannot_be_closed_keeps_no_other_from_it(flow: Flowlet) -> None:
    @flow.provide
    def gateway() -> Iterator[Gateway]:
        yield Gateway()
        log.append("closed")

    @flow.provide
    def ledger(gateway: Gateway = provided) -> Iterator[Ledger]:
        yield Ledger(gateway)
        raise OSError("gone")

    @step
    async def use(ledger: Ledger = provided) -> None: ...

    saga = flow.saga("saga", use)
    with pytest.raises(ProviderFailed, match=r"could not be closed: OSError\('gone'\)"):
        async with flow:
            await saga()
    assert log == ["closed"]


async def test_one_that_cannot_be_closed_hides_no_error_of_the_block(flow: Flowlet) -> None:
    async def make() -> AsyncIterator[Gateway]:
        yield Gateway()
        raise OSError("not closed")

    @flow.saga
    async def name(gateway: Gateway = provided) -> str:
        return gateway.name

    flow.provide(Gateway, make)

    async def fail() -> None:
        async with flow:
            assert await name() == "visa"
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    with anyio.move_on_after(5) as scope:
        async with flow:
            assert await name() == "visa"
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught


async def test_no_value_is_shown(flow: Flowlet, capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass
    class Settings:
        password: str

    async def make() -> AsyncIterator[Settings]:
        yield Settings("hunter2")
        raise OSError("not closed")

    async def make_wrong() -> Any:
        return "hunter2"

    @flow.saga
    async def ask(settings: Settings = provided) -> int:
        return len(settings.password)

    with pytest.raises(ConfigError) as refused:
        flow.provide(Settings, "hunter2")  # type: ignore[misc]
    flow.provide(Settings, make)
    with pytest.raises(ProviderFailed):
        async with flow:
            assert await ask() == 7
    flow.provide(Settings, make_wrong)
    async with flow:
        with pytest.raises(RunParked) as failed:
            await ask()
    shown = capsys.readouterr().err
    assert "provided_not_closed" in shown
    assert "Settings" in shown
    assert "hunter2" not in shown + str(refused.value) + str(failed.value)


async def test_a_value_that_breaks_in_the_background_is_made_anew(flow: Flowlet) -> None:
    breaks = anyio.Event()

    async def break_down() -> None:
        await breaks.wait()
        raise OSError("connection lost")

    @flow.provide
    async def gateway() -> AsyncIterator[Gateway]:
        async with anyio.create_task_group() as tasks:
            if not log:
                tasks.start_soon(break_down)
            log.append("made")
            yield Gateway(f"number {len(log)}")

    saga = flow.saga("saga", name_of)
    async with flow:
        assert await saga() == "number 1"
        breaks.set()
        with anyio.fail_after(5):
            while (name := await saga()) == "number 1":
                await anyio.sleep(0)
        assert name == "number 2"


# ---------------------------------------------------------------- failing factories
async def test_a_factory_that_fails_is_an_attempt_that_fails(flow: Flowlet) -> None:
    @flow.provide
    async def gateway() -> Gateway:
        log.append("try")
        if len(log) < 3:
            raise ConnectionError("refused")
        return Gateway()

    once = flow.saga("once", name_of)
    more = flow.saga("more", step(retry=Retry(attempts=2, wait=0), name="more_of")(name_of.__wrapped__))
    async with flow:
        with pytest.raises(ProviderFailed, match=r"there is no Gateway: .*gateway, which makes it, failed: Connection"):
            await once()
        assert await more() == "visa"
        assert log == ["try"] * 3


async def test_a_body_whose_factory_fails_is_parked_and_goes_on_later(flow: Flowlet) -> None:
    is_up = False

    @flow.provide
    async def gateway() -> Gateway:
        if not is_up:
            raise ConnectionError("refused")
        return Gateway()

    @flow.saga
    async def body(gateway: Gateway = provided) -> str:
        return gateway.name

    async with flow:
        handle = await flow.start(body, id="r")
        with pytest.raises(RunParked, match="cannot begin here: there is no Gateway"):
            await handle.result()
        is_up = True
        await handle.resume()
        assert await handle.result() == "visa"


async def test_what_is_made_must_be_of_the_type(flow: Flowlet) -> None:
    flow.provide(Gateway, lambda: 3)
    saga = flow.saga("saga", name_of)
    async with flow:
        with pytest.raises(ProviderFailed, match="is to make a Gateway, and made an object of int"):
            await saga()


async def test_a_timeout_counts_the_making(flow: Flowlet) -> None:
    @flow.provide
    async def gateway() -> Gateway:
        await anyio.sleep_forever()
        raise AssertionError

    saga = flow.saga("saga", step(timeout=0.01, name="timed")(name_of.__wrapped__))
    async with flow:
        with pytest.raises(TimeoutError, match=r"was not made within 0\.01 s"):
            await saga()


async def test_outside_of_a_flowlet_nothing_is_made() -> None:
    flow = Flowlet()
    flow.provide(make_async)
    with pytest.raises(ConfigError, match="enter it first"):
        await flow.bulk(in_bulk, [1])


# ---------------------------------------------------------------- in the middle of making
async def test_a_cancelled_caller_leaves_its_run_to_go_on(flow: Flowlet) -> None:
    began, go = anyio.Event(), anyio.Event()

    @flow.provide
    async def gateway() -> Gateway:
        began.set()
        await go.wait()
        return Gateway()

    @flow.saga
    async def body(gateway: Gateway = provided) -> str:
        return gateway.name

    async with flow:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(functools.partial(flow.execute, body, id="r"))
            await began.wait()
            tasks.cancel_scope.cancel()
        go.set()
        with anyio.fail_after(10):
            assert await flow.handle("r", body).result() == "visa"


@pytest.mark.parametrize("taker", ["step", "body"])
async def test_leaving_waits_for_nothing_that_is_being_made(new_store: Callable[[], Any], taker: str) -> None:
    began = anyio.Event()

    async def hang() -> Gateway:
        began.set()
        await anyio.sleep_forever()
        raise AssertionError

    def process(given: Any) -> tuple[Flowlet, Any]:
        flow = Flowlet(new_store(), grace=0)
        flow.provide(Gateway, given)

        @flow.saga
        async def body(gateway: Gateway = provided) -> str:
            return gateway.name

        return flow, body if taker == "body" else flow.saga("steps", name_of)

    flow, saga = process(hang)
    with anyio.fail_after(10):
        async with flow:
            await flow.start(saga, id="r")
            await began.wait()
    flow, saga = process(make_async)
    with anyio.fail_after(10):
        async with flow:
            assert await flow.handle("r", saga).result() == "visa"


async def test_what_is_replaced_while_it_is_made(flow: Flowlet) -> None:
    began, go = anyio.Event(), anyio.Event()

    @flow.provide
    async def gateway() -> AsyncIterator[Gateway]:
        began.set()
        await go.wait()
        yield Gateway("first")
        log.append("closed")

    saga = flow.saga("saga", name_of)
    async with flow:
        handle = await flow.start(saga, id="r")
        await began.wait()
        flow.provide(Gateway, Gateway("second"))
        go.set()
        assert await handle.result() == "second"
    assert log == ["closed"]


# ---------------------------------------------------------------- everywhere
async def test_all_that_flowlet_calls_is_given_it(flow: Flowlet) -> None:
    """Each place says so; a place that is left out fails."""

    def note(what: str, gateway: Gateway) -> None:
        log.append(f"{what} {gateway.name}")

    flow.provide(Gateway, make_async)

    @step
    def book(n: int, *, gateway: Gateway = provided) -> int:
        note("sync step", gateway)
        return n

    @compensate(book)
    async def unbook(gateway: Gateway = provided) -> None:
        note("compensation", gateway)

    @step
    async def fail() -> None:
        raise ValueError("no")

    undone = flow.saga("undone", book, fail)

    @flow.saga
    class Buy:
        def __init__(self, gateway: Gateway = provided) -> None:
            note("class", gateway)

        @step
        async def pay(self, gateway: Gateway = provided) -> None:
            note("method", gateway)

        async def __call__(self, gateway: Gateway = provided) -> None:
            note("call", gateway)
            await self.pay()

    async def stumble(n: int, gateway: Gateway = provided) -> int:
        raise ValueError(gateway.name)

    def handle(error: Exception, gateway: Gateway = provided) -> int:
        note("on_error", gateway)
        return 1

    async def tidy(gateway: Gateway = provided) -> None:
        note("finally", gateway)

    line = flow.pipeline("line", stumble, on_error=handle, finally_=tidy)

    graph = flow.graph("graph", state=Counter)

    @graph.node
    async def count(state: Counter, gateway: Gateway = provided) -> dict[str, Any]:
        note("node", gateway)
        return {"n": state.n + 1}

    graph.entry(count)
    graph.final(count)

    def approvers(subject: str, gateway: Gateway = provided) -> list[str]:
        note("approvers", gateway)
        return ["ann"]

    async def notify(notice: Any, gateway: Gateway = provided) -> None:
        note("notify", gateway)

    chain = flow.approval("chain", level("boss", approvers=approvers), type=str, notify=notify)

    async with flow:
        with pytest.raises(ValueError, match="no"):
            await undone(1)
        await flow.execute(Buy)
        assert await line(2) == 1
        assert (await graph(Counter(1))).n == 2
        await flow.start(chain, "x", id="c", requester="bob")
        await flow.approve("c", by="ann")
        await flow.handle("c").result()
    wanted = ["sync step", "compensation", "class", "call", "method", "on_error", "finally", "node", "approvers"]
    assert {line.rpartition(" ")[0] for line in log} >= {*wanted, "notify"}
    assert log.count("made") == 1


@dataclass
class Counter:
    n: int


async def test_all_that_a_machine_calls_is_given_it(flow: Flowlet) -> None:
    flow.provide(Gateway, make_async)

    async def is_open(machine: Any, gateway: Gateway = provided) -> bool:
        log.append(f"guard function {gateway.name}")
        return True

    async def work(n: int, gateway: Gateway = provided, run: Run = provided) -> int:
        log.append(f"work {gateway.name} {run.attempt}")
        return n + 1

    @flow.machine
    class Case:
        n: int = 0

        def __init__(self, n: int = 0, gateway: Gateway = provided) -> None:
            log.append(f"init {gateway!r:.8}")
            self.n = n

        @state(initial=True)
        class A: ...

        @state(invoke=work)
        class B: ...

        @state(final=True)
        class C: ...

        @guard
        def can_go(self, gateway: Gateway = provided) -> bool:
            log.append(f"guard {gateway.name}")
            return True

        @guard
        async def is_ready(self, by: str, *, gateway: Gateway = provided) -> bool:
            log.append(f"named guard {gateway.name}")
            return True

        @transition(A, B, guard=all_of(is_ready, is_open))
        async def go(self, by: str, gateway: Gateway = provided) -> str:
            log.append(f"action {gateway.name}")
            return by

        @transition(B, C, done=True)
        async def finish(self, result: int, gateway: Gateway = provided) -> None:
            self.n = result
            log.append(f"done {gateway.name}")

        def on_exit_a(self, gateway: Gateway = provided) -> None:
            log.append(f"exit {gateway.name}")

        async def on_enter_b(self, gateway: Gateway = provided) -> None:
            log.append(f"enter {gateway.name}")

        async def on_transition(self, gateway: Gateway = provided) -> None:
            log.append(f"transition {gateway.name}")

        async def on_load(self, gateway: Gateway = provided) -> None:
            log.append(f"load {gateway.name}")

    async with flow:
        case = await flow.create(Case, id="c", n=4)
        assert await can(case.go, by="ann")
        assert await case.go(by="ann") == "ann"
        with anyio.fail_after(10):
            while case.n != 5:
                await anyio.sleep(0.001)
        del case
        await flow.load(Case, "c")
    places = {line.rpartition(" ")[0] for line in log if line.endswith("visa")}
    assert places >= {"guard", "guard function", "named guard", "action", "exit", "enter", "transition", "done"}
    assert "work visa 1" in log
    loaded = Flowlet(flow.store, registry=flow.registry)
    loaded.provide(Gateway, Gateway("other"))
    async with loaded:
        if type(flow.store).__name__ != "MemoryStore":
            await loaded.load(Case, "c")
            assert log[-1] == "load other"


async def test_a_machine_is_given_what_is_provided_while_the_flowlet_is_open(flow: Flowlet) -> None:
    async with flow:

        @flow.machine(allow={"dead_end"})
        class Case:
            @state(initial=True)
            class A: ...

            @transition(A, A)
            async def go(self, gateway: Gateway = provided) -> str:
                return gateway.name

        early = await flow.create(Case, id="early")
        with pytest.raises(ConfigError, match="nothing provides Gateway"):
            await early.go()
        flow.provide(make_async)
        with pytest.raises(ConfigError, match="before the machine is created or loaded"):
            await early.go()
        assert await (await flow.create(Case, id="late")).go() == "visa"
        assert await early.go() == "visa"


async def test_a_direct_call_says_that_nobody_fills_it() -> None:
    with pytest.raises(AttributeError, match=r"'name' was asked of a parameter `= provided` that nobody has filled"):
        await name_of()
    assert await name_of(Gateway("own")) == "own"


async def test_work_of_a_machine_without_a_store_says_that_nobody_fills_it() -> None:
    async def work(gateway: Gateway = provided) -> int:
        return 1

    @Flowlet().machine
    class Case:
        @state(initial=True)
        class A: ...

        @state(invoke=work)
        class B: ...

        @state(final=True)
        class C: ...

        @transition(A, B)
        async def go(self) -> None: ...

        @transition(B, C, failed=True)
        async def stumble(self, error: Exception) -> None:
            assert isinstance(error, MachineError)
            log.append(str(error))

    await Case().go()
    with anyio.fail_after(5):
        while not log:
            await anyio.sleep(0.001)
    assert "parameter 'gateway' of work is provided by a Flowlet" in log[0]


# ---------------------------------------------------------------- types
class Sends(Protocol):
    def send(self, text: str) -> None: ...


class Prints:
    def send(self, text: str) -> None: ...


Url = NewType("Url", str)
Eu = Annotated[Gateway, "eu"]


async def test_types_of_their_own(flow: Flowlet) -> None:
    def twice(n: int) -> int:
        return 2 * n

    flow.provide(Url, Url("https://here"))
    flow.provide(str, "text")
    flow.provide(Gateway, Gateway())
    flow.provide(Eu, Gateway("eu"))
    flow.provide(Sends, Prints())
    flow.provide(Callable[[int], int], twice)
    flow.provide(type[Gateway], Gateway)
    flow.provide(list[int], [3])
    flow.provide(Gateway | None, None)
    flow.provide(Url | int, 3)

    @flow.saga
    async def body(
        url: Url = provided,
        text: str = provided,
        gateway: Gateway = provided,
        eu: Eu = provided,
        sends: Sends = provided,
        call: Callable[[int], int] = provided,
        cls: type[Gateway] = provided,
        numbers: list[int] = provided,
        perhaps: Gateway | None = provided,
        either: Url | int = provided,
    ) -> str:
        assert isinstance(sends, Prints)
        return f"{url} {text} {gateway.name} {eu.name} {call(4)} {cls.__name__} {numbers} {perhaps} {either}"

    async with flow:
        assert await body() == "https://here text visa eu 8 Gateway [3] None 3"


def make_ledger() -> Ledger:
    raise AssertionError


def takes_more(url: str) -> Gateway:
    raise AssertionError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((Gateway, 3), "was given an object of int, which is none"),
        ((Gateway, Ledger()), "which is none"),
        ((Gateway, make_ledger), "make_ledger makes a Ledger, which is none"),
        ((Gateway, Ledger), "Ledger makes a Ledger, which is none"),
        ((int, "3"), "was given an object of str"),
        ((Url, 3), "was given an object of int"),
        ((list[int], {}), "which is none"),
        ((Gateway | None, Ledger()), "which is none"),
        ((Any, 3), "takes the type that parameters are annotated with"),
        (("Gateway", Gateway()), "takes the type that parameters are annotated with, not 'Gateway'"),
        ((object, 3), "takes the type"),
        ((Annotated[int, []], 3), "cannot be looked up"),
        ((takes_more,), "nobody gives takes_more its parameter 'url'"),
        ((Gateway, takes_more), "nobody gives takes_more its parameter 'url'"),
        ((lambda: 3,), "does not say what it provides"),
    ],
)
async def test_what_cannot_be_meant(arguments: tuple[Any, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Flowlet().provide(*arguments)


# ---------------------------------------------------------------- what is missing
async def test_all_that_is_missing_is_found_on_entering() -> None:
    flow = Flowlet()

    class Gatway: ...

    class Visa(Gateway): ...

    class Local: ...

    theirs = type("Ledger", (), {"__module__": "shop.old"})
    flow.provide(Gatway, Gatway())
    flow.provide(Visa, Visa())
    flow.provide(theirs, theirs())
    flow.provide(Config)

    @step
    async def typo(gateway: Gatewai = provided) -> None: ...

    @step
    async def kind(gateway: Gateway = provided) -> None: ...

    @compensate(kind)
    async def undo(ledger: Ledger = provided, run: Run = provided) -> None: ...

    @flow.saga
    class Buy:
        def __init__(self, run: Run = provided) -> None: ...

        async def __call__(self, config: Config | None = provided) -> None:
            await typo()
            await kind()

    @flow.machine(allow={"dead_end"})
    class Case:
        @state(initial=True)
        class A: ...

        @guard
        def can_go(self, local: Local = provided, odd: Annotated[int, []] = provided) -> bool:
            return True

        @transition(A, A)
        async def go(self, run: Run = provided) -> None: ...

    with pytest.raises(DefinitionError) as raised:
        async with flow:
            raise AssertionError("it was entered")
    problems = raised.value.problems
    before = "before entering the Flowlet"
    here = Ledger.__module__
    assert set(problems) == {
        "Buy: parameter 'run': only steps and bodies are given a Run; call current_run()",
        f"Buy.__call__: nothing provides {__name__}.Config | None for parameter 'config'; write "
        f"`flow.provide({__name__}.Config | None, ...)` {before}; Config is provided: annotate it so, without None",
        f"typo: nothing provides Gatewai for parameter 'gateway'; write `flow.provide(Gatewai, ...)` {before}; did "
        "you mean 'Gatway'?",
        f"kind: nothing provides Gateway for parameter 'gateway'; write `flow.provide(Gateway, ...)` {before}; Visa "
        "is provided, which is one, but only its very annotation fills a parameter: provide it as both",
        f"undo: nothing provides {here}.Ledger for parameter 'ledger'; write `flow.provide(Ledger, ...)` {before}; "
        "what is provided is another class of that name, shop.old.Ledger",
        "Case.go: parameter 'run': only steps and bodies are given a Run; call current_run()",
        "Case.can_go: nothing provides Annotated[int, []] for parameter 'odd'; write `flow.provide(Annotated[int, []], "
        f"...)` {before}",
        f"Case.can_go: nothing provides Local for parameter 'local'; write `flow.provide(Local, ...)` {before}",
    }


class Gatewai: ...


async def test_what_factories_need_is_looked_for_as_well() -> None:
    flow = Flowlet()
    flow.provide(Ledger)
    flow.provide(Config, lambda **_: Config())

    @step
    async def use(ledger: Ledger = provided) -> None: ...

    flow.saga("saga", use)
    with pytest.raises(DefinitionError, match="Ledger: nothing provides Gateway for parameter 'gateway'"):
        async with flow:
            pass
    flow.provide(Gateway, lambda ledger=provided: Gateway())  # a lambda says nothing of what it takes
    with pytest.raises(DefinitionError, match="'ledger' has no annotation"):
        async with flow:
            pass


async def test_a_cycle_is_shown() -> None:
    flow = Flowlet()

    @flow.provide
    def gateway(ledger: Ledger = provided) -> Gateway:
        raise AssertionError

    flow.provide(Ledger)
    flow.saga("saga", name_of)
    with pytest.raises(DefinitionError, match="what provides Gateway needs itself: Gateway -> Ledger -> Gateway"):
        async with flow:
            pass
    flow = Flowlet()
    async with flow:  # too late to be found on entering
        flow.provide(gateway)
        flow.provide(Ledger)
        late = flow.saga("late", name_of)
        with pytest.raises(ConfigError, match="needs itself"):
            await late()


async def test_a_service_that_is_no_parameter_to_fill_is_a_fault_that_says_so() -> None:
    flow = Flowlet()

    class Socket: ...

    @step
    async def use(socket: Socket) -> None: ...

    with pytest.raises(DefinitionError, match=r"as with a service, write `socket: Socket = provided`"):
        flow.saga("saga", use)


async def test_what_is_judged_again_on_a_replay_is_given_nothing() -> None:
    flow = Flowlet()

    async def one(n: int) -> int:
        return n

    def judge(one: int, gateway: Gateway = provided) -> bool:
        return True

    async def two(one: int) -> int:
        return one

    with pytest.raises(DefinitionError, match="it takes a parameter `= provided`, but must judge by what it is given"):
        flow.pipeline("line", one, two, when={two: judge})
    graph = flow.graph("graph", state=Counter)

    @graph.node
    async def count(state: Counter) -> dict[str, Any]:
        return {}

    graph.entry(count)
    graph.edge(count, count, when=judge)
    graph.final(count)
    with pytest.raises(DefinitionError, match=r"when= .*judge takes a parameter `= provided`"):
        await graph(Counter(1))
    with pytest.raises(DefinitionError, match=r"when= .*judge takes a parameter `= provided`"):
        flow.approval("chain", level("boss", role="boss", when=judge), type=str)


# ---------------------------------------------------------------- overrides
@pytest.mark.parametrize("given", [Gateway("real"), make_async_yielding])
async def test_an_override_holds_for_its_block(flow: Flowlet, given: Any) -> None:
    real = "real" if isinstance(given, Gateway) else "visa"
    flow.provide(Gateway, given)
    saga = flow.saga("saga", name_of)

    class Fake:  # looks like it
        name = "fake"

    async def made() -> Gateway:
        return Gateway("made")

    async with flow:
        with flow.override(Gateway, Fake()) as fake:
            assert fake.name == "fake"
            assert await saga() == "fake"
            async with flow.override(Gateway, made):
                assert await saga() == "made"
            assert await saga() == "fake"
        assert await saga() == real
        with flow.override(Gateway, Fake()):
            assert await saga() == "fake"
        assert await saga() == real
    with pytest.raises(ZeroDivisionError), flow.override(Gateway, Fake()):
        raise ZeroDivisionError
    with flow.override(Gateway, Fake()):
        async with flow:
            assert await saga() == "fake"
    async with flow:
        assert await saga() == real


async def test_an_override_is_made_anew_when_it_is_entered_again(flow: Flowlet) -> None:
    async def make() -> AsyncIterator[Gateway]:
        gateway = Gateway("fake")
        yield gateway
        gateway.name = "closed"

    @flow.saga
    async def name(gateway: Gateway = provided) -> str:
        return gateway.name

    flow.provide(Gateway, Gateway())
    fake = flow.override(Gateway, make)
    for _ in range(2):
        async with flow:
            with fake:
                assert await name() == "fake"


async def test_what_is_provided_under_an_override_counts_after_it(flow: Flowlet) -> None:
    @flow.saga
    async def name(gateway: Gateway = provided) -> str:
        return gateway.name

    with flow.override(Gateway, Gateway("fake")):
        flow.provide(Gateway, Gateway("first"))
        flow.provide(Gateway, Gateway("second"))
        async with flow:
            assert await name() == "fake"
    async with flow:
        assert await name() == "second"


async def test_an_override_of_the_flowlet_itself(flow: Flowlet) -> None:
    @flow.saga
    async def body(here: Flowlet = provided) -> bool:
        return here is flow

    async with flow:
        with flow.override(Flowlet, 3):
            assert not await body()
        assert await body()


async def test_an_override_stands_for_what_nothing_provides() -> None:
    flow = Flowlet()
    saga = flow.saga("saga", name_of)
    with flow.override(Gateway, Gateway("fake")):
        async with flow:
            assert await saga() == "fake"
    with pytest.raises(DefinitionError):
        await flow.__aenter__()


async def test_an_override_holds_in_a_machine_that_lives(flow: Flowlet) -> None:
    flow.provide(make_async)

    @flow.machine(allow={"dead_end"})
    class Case:
        @state(initial=True)
        class A: ...

        @transition(A, A)
        async def go(self, gateway: Gateway = provided) -> str:
            return gateway.name

    async with flow:
        case = await flow.create(Case, id="c")
        assert await case.go() == "visa"
        with flow.override(Gateway, Gateway("fake")):
            assert await case.go() == "fake"
        assert await case.go() == "visa"
