"""The statements of a batch's life. One text serves SQLite and Postgres.

They are built once: building them anew for every write costs more than running them. Words of ours (states,
zero) stand in them as literals, for a partial index is only used where its condition is seen to hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Text,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
    update,
)

from embatch.states import ACTIVE, FINAL, Event, State, advance, sources
from embatch.store.records import MIXED
from embatch.store.schema import BATCH, SHARD, one_of

if TYPE_CHECKING:
    from sqlalchemy import FromClause
    from sqlalchemy.sql.dml import ReturningUpdate


def _in(states: frozenset[State]) -> ColumnElement[bool]:
    return literal_column(f"({one_of('batch.state', states)})")


def _word(word: str) -> ColumnElement[str]:
    return literal_column(f"'{word}'")


def _target(event: Event) -> State:
    """Return the one state an event leads to, wherever it is allowed."""
    (target,) = {advance(state, event) for state in sources(event)}
    return target


_NOW: Final[BindParameter[int]] = bindparam("now")
_THIS: Final = BATCH.c.id == bindparam("owner")
IS_ACTIVE: Final = _in(ACTIVE)
_ANY: Final = BATCH.alias("any_batch")
NEXT_TURN: Final = select(func.coalesce(func.max(BATCH.c.turn), 0) + 1).correlate(None).scalar_subquery()
_LAST_TURN: Final = select(func.coalesce(func.max(BATCH.c.turn), 0)).scalar_subquery()

# accept and plan

# A new batch comes behind those that had a turn before: else a stream of small ones would starve a large one.
ACCEPT: Final = insert(BATCH).values(turn=_LAST_TURN)
ADD_SHARDS: Final = insert(SHARD).values(
    state=_word("waiting"), attempt=0, successful_count=0, failed_count=0, token_count=0, cpu_micros=0
)
BY_KEY: Final = select(BATCH.c.id, BATCH.c.body_digest).where(BATCH.c.idempotency_key == bindparam("key"))
PLAN: Final = (
    update(BATCH)
    .where(_THIS, IS_ACTIVE, BATCH.c.planned.is_(False))
    .values(planned=bindparam("complete"), waiting=BATCH.c.waiting + bindparam("added"), update_time=_NOW)
)
NOTE: Final = update(BATCH).where(_THIS).values(notes=bindparam("words"))

# claim, release, commit


def _claim_batch(*among: ColumnElement[bool]) -> ReturningUpdate[tuple[str, str, int, str | None, int]]:
    """Return the statement that takes the next batch with a waiting shard, among some or all."""
    following = (
        select(BATCH.c.id)
        .where(BATCH.c.waiting > literal_column("0"), *among)
        .order_by(BATCH.c.priority.desc(), BATCH.c.turn, BATCH.c.create_time, BATCH.c.id)
        .limit(literal_column("1"))
        .with_for_update(skip_locked=True)  # Postgres; SQLite has one writer and ignores it
    )
    return (
        update(BATCH)
        .where(BATCH.c.id == following.correlate(None).scalar_subquery())
        .values(
            turn=NEXT_TURN,
            waiting=BATCH.c.waiting - 1,
            state=case((_in(sources(Event.CLAIM)), _word(_target(Event.CLAIM))), else_=BATCH.c.state),
            update_time=_NOW,
        )
        .returning(BATCH.c.id, BATCH.c.model, BATCH.c.expire_time, BATCH.c.computed_by, BATCH.c.priority)
    )


def _others(batch: FromClause) -> tuple[ColumnElement[bool], ...]:
    """Return what leaves out those that a claim leaves out."""
    return (
        batch.c.model.not_in(bindparam("without", expanding=True)),
        batch.c.id.not_in(bindparam("resting", expanding=True)),
        or_(
            batch.c.priority >= bindparam("least", type_=BigInteger),
            batch.c.model.in_(bindparam("beside", expanding=True)),
        ),
    )


CLAIM_BATCH: Final = _claim_batch()
CLAIM_BATCH_OF_OTHERS: Final = _claim_batch(*_others(BATCH))
# Of some models, but never before another one's batch of a higher priority.
CLAIM_BATCH_FIRST: Final = _claim_batch(
    *_others(BATCH),
    BATCH.c.model.in_(bindparam("first", expanding=True)),
    BATCH.c.priority
    >= select(_ANY.c.priority)
    .where(_ANY.c.waiting > literal_column("0"), *_others(_ANY))
    .order_by(_ANY.c.priority.desc())  # the first of the index, where the largest would be looked for in all
    .limit(literal_column("1"))
    .scalar_subquery(),
)
FIRST_WAITING: Final = select(func.min(SHARD.c.number)).where(
    SHARD.c.batch_id == bindparam("owner"), SHARD.c.state == _word("waiting"), SHARD.c.state != _word("done")
)
CLAIM_SHARD: Final = (
    update(SHARD)
    .where(
        SHARD.c.batch_id == bindparam("owner"),
        SHARD.c.number == FIRST_WAITING.correlate(None).scalar_subquery(),
    )
    .values(state=_word("claimed"), attempt=SHARD.c.attempt + 1)
    .returning(
        SHARD.c.number,
        SHARD.c.attempt,
        SHARD.c.path,
        SHARD.c.digest,
        SHARD.c.request_count,
        SHARD.c.byte_count,
        SHARD.c.dimensions,
        SHARD.c.cached_count,
        SHARD.c.excused,
        SHARD.c.kept_path,
        SHARD.c.kept_digest,
    )
)
# The guard of every later write about a shard: this attempt still owns it and its batch is active. In one
# statement, so that nothing can come between looking and writing.
_HELD: Final = and_(
    SHARD.c.batch_id == bindparam("owner"),
    SHARD.c.number == bindparam("at"),
    SHARD.c.attempt == bindparam("claimed_attempt"),
    SHARD.c.state == _word("claimed"),
    select(BATCH.c.id).where(_THIS, IS_ACTIVE).exists(),
)
RELEASE: Final = (
    update(SHARD)
    .where(_HELD)
    .values(
        state=_word("waiting"),
        excused=SHARD.c.excused + bindparam("forgiven"),
        kept_path=func.coalesce(bindparam("kept", type_=Text), SHARD.c.kept_path),
        kept_digest=func.coalesce(bindparam("kept_sha256", type_=Text), SHARD.c.kept_digest),
    )
)
WAIT_AGAIN: Final = update(BATCH).where(_THIS, IS_ACTIVE).values(waiting=BATCH.c.waiting + 1)
COMMIT: Final = (
    update(SHARD)
    .where(_HELD)
    .values(
        state=_word("done"),
        result_path=bindparam("result"),
        result_digest=bindparam("sha256"),
        successful_count=bindparam("successful"),
        failed_count=bindparam("failed"),
        token_count=bindparam("tokens"),
        cpu_micros=bindparam("cpu"),
        native_dimensions=bindparam("native"),
    )
)
# The first vectors of a batch decide what computes it.
COMPUTED_BY: Final = (
    update(BATCH)
    .where(_THIS, func.coalesce(BATCH.c.computed_by, bindparam("engine")) == bindparam("engine"))
    .values(computed_by=bindparam("engine"))
)
_ALL_DONE: Final = and_(
    BATCH.c.planned,
    ~select(SHARD.c.number)
    .where(SHARD.c.batch_id == bindparam("owner"), SHARD.c.state != _word("done"))
    .exists(),
)
# Touches the batch, and ends it if nothing of it is left to do.
FINISH: Final = (
    update(BATCH)
    .where(_THIS, _in(sources(Event.FINISH)))
    .values(
        update_time=_NOW,
        state=case((_ALL_DONE, _word(_target(Event.FINISH))), else_=BATCH.c.state),
        end_time=case((_ALL_DONE, _NOW), else_=BATCH.c.end_time),
    )
    .returning(BATCH.c.state)
)
_WAITING_OF_BATCH: Final = (
    select(func.count())
    .where(SHARD.c.batch_id == BATCH.c.id, SHARD.c.state == _word("waiting"), SHARD.c.state != _word("done"))
    .correlate(BATCH)
    .scalar_subquery()
)
_CLAIMED: Final = and_(SHARD.c.state == _word("claimed"), SHARD.c.state != _word("done"))
_OF_ACTIVE: Final = SHARD.c.batch_id.in_(select(BATCH.c.id).where(BATCH.c.end_time.is_(None)))
CLAIMED: Final = select(SHARD.c.batch_id, SHARD.c.number, SHARD.c.attempt).where(_CLAIMED)
RELEASE_ALL: Final = update(SHARD).where(_CLAIMED, _OF_ACTIVE).values(state=_word("waiting"))
# Of shards that nobody will work again.
_KEPT_FOR_NOBODY: Final = and_(
    SHARD.c.kept_path.is_not(None), or_(SHARD.c.state == _word("done"), not_(_OF_ACTIVE))
)
KEPT_FOR_NOBODY: Final = select(SHARD.c.kept_path).where(_KEPT_FOR_NOBODY)
FORGET_KEPT: Final = update(SHARD).where(_KEPT_FOR_NOBODY).values(kept_path=None, kept_digest=None)
RECOUNT_WAITING: Final = (
    update(BATCH).where(IS_ACTIVE, BATCH.c.end_time.is_(None)).values(waiting=_WAITING_OF_BATCH)
)

# the ends of a batch


def _ending(event: Event) -> dict[str, object]:
    return {
        "state": _word(_target(event)),
        "end_time": _NOW,
        "update_time": _NOW,
        "error": bindparam("message", None),
        "waiting": 0,
    }


END: Final = {
    event: update(BATCH).where(_THIS, _in(sources(event))).values(**_ending(event))
    for event in (Event.FAIL, Event.CANCEL)
}
EXPIRE: Final = (
    update(BATCH)
    .where(BATCH.c.end_time.is_(None), BATCH.c.expire_time <= bindparam("due"), _in(sources(Event.EXPIRE)))
    .values(**_ending(Event.EXPIRE))
    .returning(BATCH.c.id)
)
DELETE: Final = delete(BATCH).where(_THIS, _in(FINAL))

# looking

STATE: Final = select(BATCH.c.state).where(_THIS)
_RECORDS: Final = (
    select(
        *(
            column
            for column in BATCH.c
            if column.name not in ("idempotency_key", "body_digest", "turn", "waiting", "computed_by")
        ),
        func.sum(SHARD.c.request_count).label("requests"),
        func.sum(SHARD.c.successful_count).label("successful"),
        func.sum(SHARD.c.failed_count).label("failed"),
        func.sum(SHARD.c.token_count).label("tokens"),
        func.sum(SHARD.c.cached_count).label("cached"),
        func.sum(SHARD.c.cpu_micros).label("cpu"),
        # Without a vector a shard says nothing of them: it may have failed under another model.
        func.coalesce(
            func.max(case((SHARD.c.successful_count > literal_column("0"), SHARD.c.native_dimensions))),
            func.max(SHARD.c.native_dimensions),
        ).label("native"),
        case(
            (func.min(SHARD.c.dimensions) == func.max(SHARD.c.dimensions), func.min(SHARD.c.dimensions)),
            else_=literal_column(str(MIXED)),
        ).label("asked"),
    )
    .select_from(BATCH.outerjoin(SHARD, SHARD.c.batch_id == BATCH.c.id))
    .group_by(BATCH.c.id)
)
RECORD: Final = _RECORDS.where(_THIS)
UNPLANNED: Final = _RECORDS.where(BATCH.c.end_time.is_(None), BATCH.c.planned.is_(False)).order_by(
    BATCH.c.create_time, BATCH.c.id
)
_newest = (BATCH.c.create_time.desc(), BATCH.c.id.desc())
_before = tuple_(BATCH.c.create_time, BATCH.c.id) < tuple_(bindparam("seen_time"), bindparam("seen_id"))
_page = select(BATCH.c.id).order_by(*_newest).limit(bindparam("most"))
FIRST_PAGE: Final = _RECORDS.where(BATCH.c.id.in_(_page)).order_by(*_newest)
NEXT_PAGE: Final = _RECORDS.where(BATCH.c.id.in_(_page.where(_before))).order_by(*_newest)
SHARDS: Final = select(SHARD).where(SHARD.c.batch_id == bindparam("owner")).order_by(SHARD.c.number)
PRUNABLE: Final = (
    select(BATCH.c.id)
    .where(BATCH.c.end_time < bindparam("before"))
    .order_by(BATCH.c.end_time)
    .limit(bindparam("most"))
)
IDS: Final = select(BATCH.c.id)
MODELS: Final = select(BATCH.c.model).distinct()
