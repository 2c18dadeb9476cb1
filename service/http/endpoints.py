"""The endpoints: bytes to a checked request, the work, and the answer with its timings."""

from typing import cast
from urllib.parse import unquote_to_bytes
from uuid import uuid4

from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.deadline import Deadline, Stages
from service.errors import Expired, InvalidRequest
from service.explain import explain
from service.http.arrival import Arrival
from service.http.body import answer_format, body_format, is_gone, read_body
from service.http.gateway import Gateway, now_ms
from service.http.replies import EventsAnswer, UserAnswer, explained, rank_answer, reply
from service.http.validate import behaviour, deadline_ms, rank_request, user_snapshot
from service.http.wire import Formats, peek_deadline_ms
from service.rank import rank

USERS = "/v1/users/"


async def rank_candidates(gateway: Gateway, request: Request, arrival: Arrival) -> Response:
    """`POST /v1/rank`, of a request that `admit` let in. Its state tells of it as far as it got:
    stages, scene, request_id."""
    state = request.scope["state"]
    state["stages"] = stages = Stages()
    explaining = wants_explanation(request)
    headers, caller, start, deadline = arrival
    format = body_format(headers)
    body = await read_body(headers, request.receive, gateway.settings.max_body_bytes)
    stages.mark("read")

    # Who waits is called by slack, and may have more than the head told: the body is read for it.
    if not (gateway.admission.free and deadline.left()):
        told_ms = peek_deadline_ms(body, format)
        deadline = gateway.deadline(start, told_ms) if told_ms else deadline
    async with gateway.admission.turn(caller, deadline) as waited:
        if waited and is_gone(request.receive):
            raise ClientDisconnect
        stages.mark("queue")

        scene, wire = gateway.scenes.read("rank", body, format)
        state["scene"] = scene.name
        stages.mark("decode")

        patience_ms = deadline_ms(wire, gateway.limits)
        deadline = gateway.deadline(start, patience_ms)
        if not deadline.left():
            raise Expired("the deadline passed before the request was worked on", retry_after_s=1)
        with scene.served.live:  # kept loaded until the answer is there
            model = scene.model
            request_id = uuid4().hex if wire.request_id is None else ""
            checked = rank_request(
                wire, model.schema, gateway.limits, now_ms(), request_id, scene.top_k
            )
            state["request_id"] = checked.request_id
            stages.mark("validate")
            await gateway.admission.pause()
            stages.mark("queue")
            ranked = await rank(checked, model, scene.served.features, deadline, stages)
            answer = rank_answer(checked.request_id, model.version, ranked)
            if explaining:
                most = gateway.limits.max_candidates
                explanation = await explain(checked, ranked, model, deadline, most)
                answer.explanation = explained(explanation, stages)
                stages.mark("explain")

        response = reply(answer, answer_format(headers, format))
        stages.mark("encode")
    response.raw_headers.append((b"server-timing", stages.server_timing().encode()))

    async def count() -> None:
        late = not Deadline.after(patience_ms / 1e3, start).left()
        gateway.tally.answered(scene, ranked, len(checked.item_ids), stages, late)
        gateway.record(scene, model, checked, ranked, stages)

    # Nobody waits for it: the answer leaves first. BackgroundTask would look what kind of function
    # it is, for each request.
    response.background = cast(BackgroundTask, count)
    return response


def wants_explanation(request: Request) -> bool:
    """Whether the query has `explain=true`; raises InvalidRequest for another value."""
    if not request.scope["query_string"]:
        return False
    told = request.query_params.get("explain", "false")
    if told not in ("true", "false"):
        raise InvalidRequest(f"got {told[:32]!r}", path="query.explain", expected="true or false")
    return told == "true"


async def take_events(gateway: Gateway, request: Request) -> Response:
    """`POST /v1/events`: acknowledged once Redis has acknowledged."""
    gateway.caller(request.scope)
    body, format = await _body(gateway, request)
    scene, wire = gateway.scenes.read("events", body, format)
    request.state.scene = scene.name
    rows, labels = behaviour(wire, scene.model.schema, gateway.limits, now_ms())

    deadline = Deadline.after(gateway.settings.redis_write_timeout_ms / 1e3)
    features = scene.served.features
    await features.label(labels, deadline)
    appended = await features.append(wire.user_id, rows, deadline)
    gateway.feedback.reported(scene.name, labels)
    counts = {"appended": appended, "repeated": len(rows) - appended, "labels": len(labels)}
    for outcome, count in counts.items():
        gateway.metrics.events.labels(scene.name, outcome).inc(count)
    return reply(EventsAnswer(**counts).model_dump())


async def put_user(gateway: Gateway, request: Request) -> Response:
    """`PUT /v1/users/{id}`: profile and lifelong sequence, both or neither."""
    gateway.caller(request.scope)
    user_id = _user_id(request)
    body, format = await _body(gateway, request)
    scene, wire = gateway.scenes.read("user", body, format)
    request.state.scene = scene.name
    snapshot_ms, profile, lifelong = user_snapshot(
        wire, scene.model.schema, gateway.limits, now_ms()
    )
    deadline = Deadline.after(gateway.settings.redis_write_timeout_ms / 1e3)
    kept = await scene.served.features.put_user(user_id, snapshot_ms, profile, lifelong, deadline)
    return reply(UserAnswer(user_id=user_id, lifelong=kept).model_dump())


async def _body(gateway: Gateway, request: Request) -> tuple[bytes, Formats]:
    headers = dict(request.scope["headers"])
    format = body_format(headers)
    return await read_body(headers, request.receive, gateway.settings.max_body_bytes), format


def _user_id(request: Request) -> str:
    """From the raw path: a percent-encoded id is any UTF-8 string of 1 to 256 characters."""
    raw = request.scope["raw_path"].partition(b"?")[0].removeprefix(USERS.encode())
    try:
        user_id = unquote_to_bytes(raw).decode()
    except UnicodeDecodeError:
        user_id = ""
    if not 1 <= len(user_id) <= 256:
        raise InvalidRequest(
            "not an id", path="path.id", expected="percent-encoded UTF-8 of 1 to 256 characters"
        )
    return user_id
