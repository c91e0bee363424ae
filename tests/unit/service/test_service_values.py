"""The pure parts of the API: messages to values and back, pages, statuses, roles, identities, admission."""

import asyncio
import dataclasses
import math
import string
from collections.abc import Mapping

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from nestbed import errors, model
from nestbed.model import FsMode, Kind, RestartMode, State
from nestbed.runlog import Entry
from nestbed.service import convert, present
from nestbed.service.admission import Admission
from nestbed.service.authorize import LEAST_ROLES, Caller, Role, authorize, caller, calling
from nestbed.service.identity import behind_gate, by_certificate, inner_name
from nestbed.service.pages import SIZE_MAX, page
from nestbed.service.status import CODES, TRAILER_BYTES_MAX, refusal
from nestbed.v1 import agent_pb2, experiment_pb2, image_pb2, lan_pb2, node_pb2
from nestbed.v1 import container_pb2 as api

texts = st.text(string.ascii_letters + "é.-/", max_size=8)
tables = st.dictionaries(texts, texts, max_size=3).map(lambda table: tuple(sorted(table.items())))
limits = st.builds(
    model.Resources,
    cpus=st.none() | st.floats(0.01, 64),
    memory_bytes=st.none() | st.integers(1, 2**62),
    pids=st.none() | st.integers(1, 2**31),
    io_weight=st.none() | st.integers(1, 10000),
)
process_specs = st.builds(
    model.ProcessSpec,
    args=st.lists(texts, max_size=3).map(tuple),
    env=tables,
    fs=st.sampled_from(FsMode),
    mounts=st.lists(st.builds(model.Mount, texts, texts, st.booleans()), max_size=2).map(tuple),
    sysctls=tables,
    tty=st.booleans(),
)
requests = st.builds(
    model.ContainerRequest,
    kind=st.sampled_from(Kind),
    process=process_specs,
    name=texts,
    labels=tables,
    resources=limits,
    restart=st.builds(model.RestartPolicy, st.sampled_from(RestartMode), st.integers(0, 9)),
    routes=st.lists(st.builds(model.Route, texts, texts), max_size=2).map(tuple),
    auto_remove=st.booleans(),
    qemu=st.builds(model.QemuSpec, append=texts),
).map(lambda request: request if request.kind is Kind.QEMU else dataclasses.replace(request, qemu=None))


@given(requests)
def test_what_is_shown_of_a_container_asks_for_the_same_again(request: model.ContainerRequest) -> None:
    asked = {field.name: getattr(request, field.name) for field in dataclasses.fields(request) if field.name not in ("nics", "control")}
    spec = model.Spec(id="0123456789ab", created_at=1.5, **asked)
    shown = present.container(model.ContainerView(spec, model.Status(State.CREATED)))
    again = api.ContainerSpec.FromString(shown.spec.SerializeToString())
    assert convert.container_request(again, admin=False) == dataclasses.replace(request, control=False)


def test_file_system_mode_not_given_is_the_default_of_the_role() -> None:
    spec = api.ContainerSpec(kind=api.CONTAINER_KIND_PROCESS)
    assert convert.container_request(spec, admin=True).process.fs is FsMode.HOST
    assert convert.container_request(spec, admin=False).process.fs is FsMode.OVERLAY


def test_every_state_has_a_number() -> None:
    for state in State:
        view = model.ContainerView(model.Spec("i", "n", Kind.PROCESS, model.ProcessSpec(("a",))), model.Status(state))
        assert api.ContainerState.Name(present.container(view).state) == f"CONTAINER_STATE_{state.name}"


@pytest.mark.parametrize(
    "spec",
    [
        api.ContainerSpec(kind=0),
        api.ContainerSpec(kind=77),
        api.ContainerSpec(kind=1, process=api.ProcessSpec(fs_mode=77)),
        api.ContainerSpec(kind=1, restart=api.RestartPolicy(mode=77)),
        api.ContainerSpec(kind=1, resources=api.Resources(cpus=math.nan)),
        api.ContainerSpec(kind=1, resources=api.Resources(cpus=math.inf)),
    ],
)
def test_what_the_model_cannot_express_is_refused(spec: api.ContainerSpec) -> None:
    with pytest.raises(errors.InvalidArgument) as caught:
        convert.container_request(spec, admin=True)
    assert caught.value.remedy


def test_unknown_exit_is_neither_code_nor_signal() -> None:
    shown = present.exit_status(model.ExitStatus(reason="unknown"))
    assert not shown.HasField("code")
    assert not shown.HasField("signal")
    assert shown.shell_code == 255
    assert present.exit_status(model.ExitStatus(code=0)).HasField("code")


def test_figures_the_kernel_does_not_give_are_absent() -> None:
    view = model.ContainerView(model.Spec("i", "n", Kind.PROCESS, model.ProcessSpec(("a",))), model.Status(State.RUNNING))
    shown = present.stats(view, model.Stats(at=1.0, pids=0))
    assert shown.HasField("pids")
    assert not shown.HasField("memory_bytes")


def test_log_entries_share_responses_of_a_bounded_size() -> None:
    entries = [Entry(1.5, 2, b"x" * 100_000, partial=True)] * 7
    responses = list(present.logs(entries))
    assert [len(response.entries) for response in responses] == [3, 3, 1]
    assert responses[0].entries[0].stream == api.LOG_STREAM_STDERR
    assert responses[0].entries[0].time == Timestamp(seconds=1, nanos=500_000_000)
    assert list(present.logs([])) == []


def test_names_that_are_no_unicode_are_shown_all_the_same() -> None:
    assert present.text("a\udcffb") == "a\ufffdb"


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**31), 2**31 - 1))
def test_durations_are_bounded(seconds: int, nanos: int) -> None:
    request = api.StopContainerRequest(grace=Duration(seconds=seconds, nanos=nanos))
    if 0 <= seconds + nanos / 1e9 <= convert.SECONDS_MAX:
        assert convert.grace_seconds(request) == seconds + nanos / 1e9
    else:
        with pytest.raises(errors.InvalidArgument, match="grace"):
            convert.grace_seconds(request)


def test_defaults_of_requests() -> None:
    assert convert.grace_seconds(api.StopContainerRequest()) == 10.0
    assert convert.grace_seconds(api.StopContainerRequest(grace=Duration())) == 0.0
    assert convert.signal(0) == 9
    assert convert.tail(api.GetLogsRequest()) is None
    assert convert.tail(api.GetLogsRequest(tail=0)) == 0
    assert convert.since(api.GetLogsRequest()) is None
    assert convert.change(api.UpdateContainerRequest()) == model.Change()
    assert (convert.exec_spec(api.ExecStart()).rows, convert.exec_spec(api.ExecStart()).columns) == (24, 80)


# ---------------------------------------------------------------- pages


def _pages(count: int, size: int) -> list[list[str]]:
    items = [(float(index // 3), f"{index:04}") for index in range(count)]
    pages, token = [], ""
    while True:
        messages, token = page(items, size=size, token=token, place=lambda item: item, present=lambda item: node_pb2.Event(id=item[1]))
        pages.append([message.id for message in messages])
        if not token:
            return pages


@given(st.integers(0, 30), st.integers(1, 11))
def test_pages_give_each_item_once_in_order(count: int, size: int) -> None:
    pages = _pages(count, size)
    assert [item for items in pages for item in items] == [f"{index:04}" for index in range(count)]
    assert all(len(items) == size for items in pages[:-1])


def test_a_page_is_bounded_in_items_and_bytes() -> None:
    assert len(_pages(1500, 5000)[0]) == SIZE_MAX
    large = [(float(index), "x" * 500_000) for index in range(9)]
    messages, token = page(large, size=0, token="", place=lambda item: item, present=lambda item: node_pb2.Event(id=item[1]))
    assert (len(messages), bool(token)) == (5, True)


def test_paging_survives_what_comes_and_goes() -> None:
    items = [(1.0, "a"), (2.0, "b"), (3.0, "c")]
    _, token = page(items, size=2, token="", place=lambda item: item, present=lambda item: node_pb2.Event(id=item[1]))
    rest, end = page(
        [(1.0, "a"), (3.0, "c"), (4.0, "d")], size=2, token=token, place=lambda item: item, present=lambda item: node_pb2.Event(id=item[1])
    )
    assert ([message.id for message in rest], end) == (["c", "d"], "")


@given(st.text(max_size=20).filter(bool))
def test_a_token_that_no_page_gave_is_refused(token: str) -> None:
    with pytest.raises(errors.InvalidArgument, match="page_token"):
        page([], size=0, token=token, place=lambda item: item, present=lambda item: node_pb2.Event())


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(errors.InvalidArgument, match="page_size"):
        page([], size=-1, token="", place=lambda item: item, present=lambda item: node_pb2.Event())


# ---------------------------------------------------------------- statuses


def _info(error: Exception) -> tuple[StatusCode, str, error_details_pb2.ErrorInfo]:
    end = refusal(error)
    [(key, value)] = end.trailer
    assert key == "grpc-status-details-bin"
    status = status_pb2.Status.FromString(value)
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (status.code, status.message) == (end.code.value[0], end.message)
    return end.code, end.message, info


@pytest.mark.parametrize("kind", errors.NestbedError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_error_class_has_a_code(kind: type[errors.NestbedError]) -> None:
    code, message, info = _info(kind("what happened", remedy="what to do", path="/x"))
    assert code is CODES[kind] is not StatusCode.INTERNAL
    assert (message, info.reason, info.domain) == ("what happened", kind.default_reason, "nestbed")
    assert dict(info.metadata) == {"class": kind.__name__, "remedy": "what to do", "path": "/x"}


def test_a_defect_is_told_neutrally_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    code, message, info = _info(ZeroDivisionError("secret"))
    assert (code, info.reason) == (StatusCode.INTERNAL, "INTERNAL")
    assert "secret" not in message + str(info)
    assert "secret" in caplog.text


def test_the_cause_is_found_in_a_group_of_tasks() -> None:
    assert _info(ExceptionGroup("tasks", [ExceptionGroup("more", [errors.Busy("b")])]))[0] is StatusCode.ABORTED


@given(st.text(), st.dictionaries(st.text(), st.text()))
def test_a_status_fits_into_the_trailer_and_on_a_line(message: str, metadata: Mapping[str, str]) -> None:
    error = errors.NotFound(message * 100, remedy=message * 200)
    error.metadata.update({key: value * 300 for key, value in metadata.items()})
    end = refusal(error)
    assert len(end.trailer[0][1]) < TRAILER_BYTES_MAX + 2048
    assert "\n" not in end.message


# ---------------------------------------------------------------- roles


def _methods() -> list[str]:
    services = [
        service
        for file in (
            agent_pb2.DESCRIPTOR,
            api.DESCRIPTOR,
            experiment_pb2.DESCRIPTOR,
            image_pb2.DESCRIPTOR,
            lan_pb2.DESCRIPTOR,
            node_pb2.DESCRIPTOR,
        )
        for service in file.services_by_name.values()
    ]
    return [f"/{service.full_name}/{method.name}" for service in services for method in service.methods]


def test_every_method_has_a_rule_and_every_rule_of_ours_a_method() -> None:
    assert set(_methods()) == {method for method in LEAST_ROLES if method.startswith("/nestbed.")}


@pytest.mark.parametrize("method", _methods())
def test_nobody_may_do_anything_and_admin_everything(method: str) -> None:
    with pytest.raises(errors.PermissionDenied):
        authorize(method, Caller(Role.NOBODY, "x"))
    authorize(method, Caller(Role.ADMIN, "x"))


def test_a_method_without_a_rule_is_refused_even_to_admin() -> None:
    with pytest.raises(errors.PermissionDenied) as caught:
        authorize("/nestbed.v1.NodeService/Explode", Caller(Role.ADMIN, "x"))
    assert caught.value.reason == "NO_RULE"


def test_without_a_call_there_is_no_caller() -> None:
    with pytest.raises(errors.Unauthenticated):
        caller()
    with calling(Caller(Role.VIEWER, "me")):
        assert caller().name == "me"


@dataclasses.dataclass
class Connection:
    address: str = ""
    known: Mapping[str, list[bytes]] = dataclasses.field(default_factory=dict)

    def peer(self) -> str:
        return self.address

    def auth_context(self) -> Mapping[str, list[bytes]]:
        return self.known


def test_identity_behind_the_gate() -> None:
    identify = behind_gate(Role.OPERATOR)
    assert identify(Connection(f"unix:/proc/self/fd/9/{inner_name(1000, 77, 5)}")) == Caller(Role.OPERATOR, "uid 1000", 77)
    for address in ("unix:", "unix:/tmp/x", "ipv4:127.0.0.1:5"):
        with pytest.raises(errors.Unauthenticated):
            identify(Connection(address))


@pytest.mark.parametrize(
    ("common", "others", "role"),
    [
        (b"admin", [], Role.ADMIN),
        (b"alice@operator", [], Role.OPERATOR),
        (b"alice", [b"alice@viewer", b"DNS"], Role.VIEWER),
        (b"alice", [], Role.NOBODY),
        (b"xadmin", [], Role.NOBODY),
        (b"admin\n", [], Role.NOBODY),
        (b"@admin", [], Role.NOBODY),
        (b"a@b@admin", [], Role.NOBODY),
        (b"\xff", [], Role.NOBODY),
    ],
)
def test_identity_by_certificate(common: bytes, others: list[bytes], role: Role) -> None:
    who = by_certificate(Connection(known={"x509_common_name": [common], "x509_subject_alternative_name": others}))
    assert who.role is role


def test_a_certificate_with_two_roles_is_refused() -> None:
    with pytest.raises(errors.Unauthenticated):
        by_certificate(Connection(known={"x509_common_name": [b"a@admin"], "x509_subject_alternative_name": [b"a@viewer"]}))


# ---------------------------------------------------------------- admission


async def test_short_calls_queue_in_order_and_the_queue_is_bounded() -> None:
    admission = Admission(running=1, queued=2)
    order: list[int] = []
    release = asyncio.Event()

    async def call(number: int) -> None:
        async with admission.short(lambda: 10):
            order.append(number)
            await release.wait()

    tasks = [asyncio.create_task(call(number)) for number in range(4)]
    with pytest.raises(errors.ResourceExhausted) as caught:
        await tasks[3]
    assert caught.value.reason == "QUEUE_FULL"
    release.set()
    await asyncio.gather(*tasks[:3])
    assert order == [0, 1, 2]
    await call(4)


async def test_the_queue_is_bounded_in_bytes_and_time() -> None:
    admission = Admission(running=1, queued_bytes=100, queue_seconds=0.01)
    async with admission.short(lambda: 0):
        with pytest.raises(errors.ResourceExhausted) as caught:
            async with admission.short(lambda: 101):
                pass
        assert caught.value.reason == "QUEUE_FULL"
        with pytest.raises(errors.ResourceExhausted) as caught:
            async with admission.short(lambda: 1):
                pass
        assert caught.value.reason == "QUEUE_SLOW"


async def test_a_caller_that_leaves_the_queue_takes_no_place() -> None:
    admission = Admission(running=1, queued=1)
    async with admission.short(lambda: 1):
        waiting = asyncio.create_task(admission.short(lambda: 1).__aenter__())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
    async with admission.short(lambda: 1):
        pass


async def test_a_short_call_has_a_deadline_and_its_own_timeouts_are_not_mistaken_for_it() -> None:
    admission = Admission(run_seconds=0.01)
    with pytest.raises(errors.Deadline):
        async with admission.short(lambda: 0):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):
        async with admission.short(lambda: 0):
            raise TimeoutError


def test_long_calls_are_bounded_per_caller_and_in_all() -> None:
    admission = Admission(long=3, long_per_caller=2)
    with admission.long("a"), admission.long("a"):
        with pytest.raises(errors.ResourceExhausted) as caught, admission.long("a"):
            pass
        assert caught.value.reason == "CALLER_STREAMS"
        with admission.long("b"):
            with pytest.raises(errors.ResourceExhausted) as caught, admission.long("c"):
                pass
            assert caught.value.reason == "STREAMS"
    with admission.long("a"):
        pass
