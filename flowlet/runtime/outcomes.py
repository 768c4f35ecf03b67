"""What who waits for a run is told of an end that is no completion, and of a question to its operator.

Law: pure. The same error comes of a live end and of a recorded one, except for what cannot be rebuilt.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowlet.core.engine import Question
from flowlet.core.failures import rebuild_failure
from flowlet.core.run_records import Attention, Ended
from flowlet.errors import CompensationFailed, FlowletError, RunParked


def stuck_error(question: Question) -> Exception:
    """Return what who waits for a run is told while it waits for an operator."""
    if question.error is not None:
        return attach(question.error, question.steps, question.errors)
    return RunParked(question.reason)


def attach(error: Exception, failed: Sequence[str], errors: Sequence[Exception]) -> Exception:
    """Hang the failed compensations under the error that started the rollback, as its last cause."""
    if not failed:
        return error
    end: BaseException = error
    seen = {id(end)}
    while end.__cause__ is not None and id(end.__cause__) not in seen:
        end = end.__cause__
        seen.add(id(end))
    end.__cause__ = CompensationFailed(failed, errors)
    return error


def ended_error(record: Ended) -> Exception:
    """Rebuild what the run's caller is told of an end that is no completion."""
    if record.error is None:
        return FlowletError(f"the run ended as {record.status}")
    return rebuild_failure(record.error)


def asked_error(record: Attention) -> Exception:
    """Rebuild what who waits for a run is told while it waits for an operator."""
    return stuck_error(
        Question(
            status=record.status,
            reason=record.reason,
            steps=record.steps,
            errors=tuple(rebuild_failure(f) for f in record.errors),
            error=None if record.error is None else rebuild_failure(record.error),
        )
    )
