"""Random events with random failures against a model that is too simple to be wrong."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowlet.core.faults import Faults
from flowlet.core.machine_builder import build_machine
from flowlet.core.marks import guard, state, transition
from flowlet.errors import HookFailed, TransitionNotAllowed
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_install import install_machine
from flowlet.runtime.machine_questions import available_events, can, fire, raise_event, state_of
from flowlet.runtime.machines import Machines
from flowlet.stores.memory import MemoryStore


class Broken(Exception):
    pass


def build(waits: bool) -> Any:
    """Make the machine under test; its callbacks wait, or are known not to."""

    class Case:
        n: int = 0
        hooked: int = 0

        def __init__(self) -> None:
            self._fails = ""
            self._refuses = False

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @state
        class C: ...

        if waits:

            @guard
            async def can_go(self) -> bool:
                await anyio.lowlevel.checkpoint()
                return not self._refuses

            @transition(A, B)
            async def go(self) -> int:
                self.n += 1
                await anyio.lowlevel.checkpoint()
                if self._fails == "action":
                    raise Broken
                return self.n

            async def on_exit_b(self) -> None:
                self.n += 100
                await anyio.lowlevel.checkpoint()
                if self._fails == "exit":
                    raise Broken

            async def on_enter_b(self) -> None:
                self.hooked += 1
                await anyio.lowlevel.checkpoint()
                if self._fails == "enter":
                    raise Broken
        else:

            @guard
            def can_go(self) -> bool:
                return not self._refuses

            @transition(A, B)
            async def go(self) -> int:
                self.n += 1
                if self._fails == "action":
                    raise Broken
                return self.n

            def on_exit_b(self) -> None:
                self.n += 100
                if self._fails == "exit":
                    raise Broken

            def on_enter_b(self) -> None:
                self.hooked += 1
                if self._fails == "enter":
                    raise Broken

        @transition(B, C)
        async def on(self) -> int:
            self.n += 10
            if self._fails == "action":
                raise Broken
            return self.n

        @transition("*", A)
        async def back(self) -> int:
            if self._fails == "raise":
                raise_event(self.go)
            return self.n

        @transition(C, None)
        async def note(self) -> int:
            self.n += 1000
            return self.n

    faults = Faults()
    definition = build_machine(Case, name="Case", namespace={}, faults=faults)
    faults.raise_if_any()
    assert definition is not None
    return install_machine(definition)


CLASSES = {waits: build(waits) for waits in (False, True)}
TABLE = {("A", "go"): "B", ("B", "on"): "C", ("C", "note"): "C", **{(s, "back"): "A" for s in "ABC"}}
ADDS = {"go": 1, "on": 10, "note": 1000, "back": 0}


class Model:
    """What the machine must be like, in plain code."""

    def __init__(self) -> None:
        self.state, self.n, self.hooked = "A", 0, 0

    def fire(self, event: str, fails: str, refuses: bool) -> Any:
        """Return the result, or the class of the error."""
        target = TABLE.get((self.state, event))
        if target is None or (event == "go" and refuses):
            return TransitionNotAllowed
        leaves = 100 if self.state == "B" else 0
        if leaves and fails == "exit":
            return HookFailed
        if fails == "action" and event in ("go", "on"):
            return Broken
        self.n += leaves + ADDS[event]
        self.state, result = target, self.n
        if event == "go":
            self.hooked += 1
            if fails == "enter":
                return HookFailed
        if event == "back" and fails == "raise" and not refuses:
            self.fire("go", "", refuses)
        return result


moves = st.lists(
    st.tuples(
        st.sampled_from(["go", "on", "back", "note", "go", "on"]),
        st.sampled_from(["", "", "", "exit", "action", "enter", "raise"]),
        st.booleans(),
        st.sampled_from(["call", "fire"]),
    ),
    max_size=25,
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("waits", [False, True])
@settings(max_examples=60, deadline=None, derandomize=True)
@given(moves=moves)
def test_a_machine_behaves_like_its_model(backend: str, stored: bool, waits: bool, moves: Any) -> None:
    anyio.run(follow, CLASSES[waits], stored, moves, backend=backend)


async def follow(cls: Any, stored: bool, moves: list[tuple[str, str, bool, str]]) -> None:
    store, model = MemoryStore(), Model()
    await store.heartbeat("me", 60.0)
    machines = Machines(store, now=time.time, worker="me", log=Log())
    one = await machines.create(cls, id="c") if stored else cls()
    committed = 0
    for event, fails, refuses, how in moves:
        one._fails, one._refuses = fails, refuses
        assert set(available_events(one)) == {e for s, e in TABLE if s == model.state}
        allowed = (model.state, event) in TABLE and not (event == "go" and refuses)
        assert await can(getattr(one, event)) is allowed
        before = (model.state, model.n, model.hooked)
        expected = model.fire(event, fails, refuses)
        failed: Exception | None = None
        try:
            got: Any = await (getattr(one, event)() if how == "call" else fire(one, event))
        except (Broken, HookFailed, TransitionNotAllowed) as error:
            got = type(error)
            failed = error
        if isinstance(failed, HookFailed):
            assert failed.committed == (before != (model.state, model.n, model.hooked))
        assert got == expected
        assert (state_of(one), one.n, one.hooked) == (model.state, model.n, model.hooked)
        committed += got not in (Broken, TransitionNotAllowed) and before != (model.state, model.n, model.hooked)
    if stored:
        other = await Machines(store, now=time.time, worker="me", log=Log()).load(cls, "c")
        assert (state_of(other), other.n, other.hooked) == (model.state, model.n, model.hooked)
        states = ["A"]
        async for t in machines.history("c"):
            assert t.source == states[-1]
            states.append(t.target)
        assert states[-1] == model.state
        assert len(states) - 1 >= committed


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_thousand_events_on_many_machines_do_not_mix(backend: str, data: st.DataObject) -> None:
    plans = data.draw(st.lists(st.lists(st.sampled_from(["go", "on", "back", "note"]), max_size=8), max_size=40))

    async def drive(plan: list[str]) -> None:
        one, model = CLASSES[True](), Model()
        for event in plan:
            expected = model.fire(event, "", False)
            try:
                got: Any = await getattr(one, event)()
            except TransitionNotAllowed as error:
                got = type(error)
            assert got == expected
        assert (state_of(one), one.n, one.hooked) == (model.state, model.n, model.hooked)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            for plan in plans:
                group.start_soon(drive, plan)

    anyio.run(main, backend=backend)
