"""Expenses that people decide on: a saga that waits for an approval chain, over several processes.

    python examples/expenses.py submit e-7 --by ann --amount 25000 --purpose "a press"
    python examples/expenses.py inbox bob                       # what bob can decide on
    python examples/expenses.py approve e-7 --by bob --comment "we need it"
    python examples/expenses.py delegate e-7 --by fay --to flo  # flo decides for fay
    python examples/expenses.py reject e-7 --by flo --comment "which supplier?"
    python examples/expenses.py change e-7 --by ann --amount 9000
    python examples/expenses.py show e-7                        # what has happened

Each command is a process of its own, and does only what comes next; what was done before is in ``expenses.db``. What is
due when no process is there (a manager who has not decided for three days) happens with the next command.
"""

from __future__ import annotations

import argparse
from datetime import timedelta

import anyio
from msgspec import Struct

from flowlet import Flowlet, Registry, level, step
from flowlet.approval import ApprovalNotice
from flowlet.errors import ApprovalError, IdConflict, RunFinished, RunNotFound

PEOPLE = {
    "ann": {"employee"},
    "bob": {"employee", "manager"},
    "dan": {"employee", "director"},
    "fay": {"employee", "finance"},
    "fin": {"employee", "finance"},
    "flo": {"employee"},
}
"""Who works here, and as what: an application would ask its directory."""

registry = Registry()


class Expense(Struct):
    """What is to be decided on. Amounts are euros."""

    amount: int
    purpose: str


# ---------------------------------------------------------------- the chain
async def tell(notice: ApprovalNotice[Expense]) -> None:
    """Tell people what happens; an application would send mail."""
    who = ", ".join([*notice.people, *(f"any {role}" for role in notice.roles)])
    where = "" if notice.level is None else f" {notice.level}"
    rest = {"opened": f": {who} can decide", "reminded": f": {who} should decide", "escalated": f": now {who} can"}
    print(f"  mail: {notice.what}{where}{rest.get(notice.what, '')}")


def accountants(expense: Expense) -> list[str]:
    """Name who is asked about the money: a step, so that it may look that up and is on record."""
    return [name for name, roles in PEOPLE.items() if "finance" in roles]


expense = registry.approval(
    "expense",
    level("manager", role="manager", timeout=timedelta(days=3), escalate_to="director", remind=timedelta(days=2)),
    level("finance", approvers=accountants, quorum="all", when=lambda e: e.amount > 10_000, send_back_to="manager"),
    type=Expense,
    distinct=True,
    notify=tell,
)


# ---------------------------------------------------------------- the saga around it
@step
async def pay(person: str, amount: int) -> str:
    print(f"  paid {amount} to {person}")
    return f"paid {amount} to {person}"


@registry.saga
async def claim(wanted: Expense, person: str) -> str:
    outcome = await expense(wanted, requester=person)
    if not outcome.approved:
        return f"{outcome.status}: {outcome.reason}"
    return await pay(person, outcome.subject.amount)  # what was approved, which may have been changed


# ---------------------------------------------------------------- the commands
def chain_of(id: str) -> str:
    """Return the id of the chain that a claim waits for."""
    return f"{id}/expense"


async def submit(flow: Flowlet, options: argparse.Namespace) -> None:
    await flow.start(claim, Expense(options.amount, options.purpose), options.by, id=options.id)
    await come_to_rest(flow, options.id)


async def decide(flow: Flowlet, options: argparse.Namespace) -> None:
    seen = await count(flow, options.id)
    act = flow.approve if options.command_name == "approve" else flow.reject
    decision = await act(chain_of(options.id), by=options.by, level=options.level, comment=options.comment)
    whose = "" if decision.on_behalf_of is None else f" on behalf of {decision.on_behalf_of}"
    print(f"{decision.by} has {'approved' if decision.approved else 'rejected'} level {decision.level}{whose}")
    await come_to_rest(flow, options.id, seen)


async def delegate(flow: Flowlet, options: argparse.Namespace) -> None:
    seen = await count(flow, options.id)
    await flow.delegate(chain_of(options.id), by=options.by, to=options.to)
    print(f"{options.to} decides for {options.by}")
    await come_to_rest(flow, options.id, seen)


async def change(flow: Flowlet, options: argparse.Namespace) -> None:
    seen = await count(flow, options.id)
    await flow.resubmit(chain_of(options.id), Expense(options.amount, options.purpose), by=options.by)
    print(f"{options.by} has changed it to {options.amount}: it begins anew")
    await come_to_rest(flow, options.id, seen)


async def withdraw(flow: Flowlet, options: argparse.Namespace) -> None:
    seen = await count(flow, options.id)
    await flow.withdraw(chain_of(options.id), by=options.by)
    await come_to_rest(flow, options.id, seen)


async def list_inbox(flow: Flowlet, options: argparse.Namespace) -> None:
    async for item in flow.inbox(person=options.person):
        what: Expense = item.subject
        due = "" if item.due is None else f", until {item.due:%d %b}"
        id = item.id.removesuffix("/expense")
        print(f"{id}: {what.amount} for {what.purpose}, asked by {item.requester}: level {item.level}{due}")


async def show(flow: Flowlet, options: argparse.Namespace) -> None:
    async for entry in flow.audit(chain_of(options.id)):
        words = [entry.what, entry.level, entry.by and f"by {entry.by}", entry.to and f"to {entry.to}"]
        words += [entry.on_behalf_of and f"for {entry.on_behalf_of}", entry.comment and f'"{entry.comment}"']
        words += [entry.reason and f"({entry.reason})"]
        print(f"{entry.at:%Y-%m-%d %H:%M}  {' '.join(filter(None, words))}")
    await tell_state(flow, options.id)


async def come_to_rest(flow: Flowlet, id: str, seen: int = 0) -> None:
    """Let this process do what there is to do now, until the claim has ended or waits for people, and say which.

    Args:
        seen: so many records there were in the chain before.
    """
    chain = flow.handle(chain_of(id))
    while await count(flow, id) <= seen or await chain.status() == "running":  # noqa: ASYNC110
        await anyio.sleep(0.01)
    if await chain.status() == "completed":
        await flow.handle(id).result()
    await tell_state(flow, id)


async def count(flow: Flowlet, id: str) -> int:
    try:
        return len([record async for record in flow.handle(chain_of(id)).history()])
    except RunNotFound:  # the claim is just about to ask for it
        return 0


async def tell_state(flow: Flowlet, id: str) -> None:
    claimed = flow.handle(id, claim)
    if await claimed.status() == "completed":
        print(f"{id} is settled: {await claimed.result()}")
        return
    items = [item async for item in flow.inbox() if item.id == chain_of(id)]
    for item in items:
        who = ", ".join([*item.people, *(f"any {role}" for role in item.roles)])
        print(f"{id} waits on level {item.level} for {who}")


async def serve(options: argparse.Namespace) -> None:
    async with Flowlet(f"sqlite:///{options.db}", registry=registry, authorize=PEOPLE.get) as flow:
        try:
            await options.command(flow, options)
        except (ApprovalError, IdConflict, RunFinished, RunNotFound) as error:
            raise SystemExit(str(error)) from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Have expenses decided on, and paid.")
    parser.add_argument("--db", default="expenses.db", help="the SQLite file that keeps the work")
    commands = parser.add_subparsers(required=True, dest="command_name")

    def add(name: str, command: object, text: str, *more: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text)
        sub.add_argument("id", help="of the expense")
        if command is not show:
            sub.add_argument("--by", required=True, choices=PEOPLE, help="who you are")
        if "amount" in more:
            sub.add_argument("--amount", type=int, required=True, help="euros")
            sub.add_argument("--purpose", default="something", help="what it is for")
        if "comment" in more:
            sub.add_argument("--comment", default="", help="why")
            sub.add_argument("--level", help="the level, if it could be several")
        sub.set_defaults(command=command)
        return sub

    add("submit", submit, "ask for money", "amount")
    add("approve", decide, "approve what you are asked for", "comment")
    add("reject", decide, "reject it", "comment")
    add("delegate", delegate, "have somebody else decide").add_argument("--to", required=True, choices=PEOPLE)
    add("change", change, "change what you have asked for", "amount")
    add("withdraw", withdraw, "take back what you have asked for")
    add("show", show, "show what has happened")
    inbox = commands.add_parser("inbox", help="list what somebody can decide on")
    inbox.add_argument("person", choices=PEOPLE)
    inbox.set_defaults(command=list_inbox)
    anyio.run(serve, parser.parse_args())


if __name__ == "__main__":
    main()
