"""Whether, and when, a failed attempt is made again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from flow.definition import RetryPolicy
from flow.errors import NOT_RETRIED, Failure


@dataclass(frozen=True, slots=True)
class Again:
    """Make the next attempt at this instant."""

    at: datetime


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The failure stands."""


Decision = Again | GiveUp


def delay(attempt: int, policy: RetryPolicy) -> timedelta:
    """Wait after the given attempt: base × factor^(attempt-1), capped.

    The first attempt is 1. Jitter is the caller's.
    Raises ValueError if attempt < 1.
    """
    if attempt < 1:
        raise ValueError(f"attempts count from 1, not {attempt}")
    try:
        return min(policy.cap, policy.base * policy.factor ** (attempt - 1))
    except OverflowError:
        return policy.cap


def decide(
    policy: RetryPolicy, failure: Failure, *, failures: int, first_start: datetime, now: datetime, draw: float
) -> Decision:
    """What follows the ``failures``-th failed attempt (a lost worker is not a failure of the node).

    ``draw`` is a random number in [-1, 1] that the jitter is made of. A remote side's ``retry_after_seconds`` is
    waited for even beyond the policy's cap: asking earlier would only be refused again.
    """
    if not allowed(policy, failure) or failures > policy.max:
        return GiveUp()
    wait = delay(failures, policy)
    wait += wait * (policy.jitter * draw)
    if failure.retry_after_seconds is not None:
        wait = max(wait, timedelta(seconds=failure.retry_after_seconds))
    at = now + wait
    if policy.total_timeout is not None and at >= first_start + policy.total_timeout:
        return GiveUp()
    return Again(at)


def allowed(policy: RetryPolicy, failure: Failure) -> bool:
    """Whether this kind of failure is retried at all.

    ``never_on`` wins, then ``retry_on``, then the handler's own word, then the category.
    """
    words = {failure.code, failure.category.value}
    if words & set(policy.never_on):
        return False
    if policy.retry_on:
        return bool(words & set(policy.retry_on))
    if failure.retryable is not None:
        return failure.retryable
    return failure.category not in NOT_RETRIED
