"""An experiment as callers see it."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from nestbed.experiment.fleet import Holdings, has_ended_well
from nestbed.experiment.plan import Plan, PlannedElement
from nestbed.experiment.readiness import how_it_ended
from nestbed.experiment.records import ExperimentRecord, Phase
from nestbed.v1 import container_pb2 as api
from nestbed.v1 import experiment_pb2

_STATES: Mapping[Phase, experiment_pb2.ExperimentState.ValueType] = {
    Phase.RISING: experiment_pb2.EXPERIMENT_STATE_RISING,
    Phase.UP: experiment_pb2.EXPERIMENT_STATE_UP,
    Phase.FAILED: experiment_pb2.EXPERIMENT_STATE_FAILED,
    Phase.FALLING: experiment_pb2.EXPERIMENT_STATE_FALLING,
}
_RUNS = (api.CONTAINER_STATE_RUNNING, api.CONTAINER_STATE_PAUSED, api.CONTAINER_STATE_STOPPING, api.CONTAINER_STATE_RESTARTING)


def summary(record: ExperimentRecord, plan: Plan | None) -> experiment_pb2.Experiment:
    """What is known of it without asking its nodes; without a plan no nodes and numbers."""
    started, took = Timestamp(), Duration()
    started.FromNanoseconds(int(record.started_at * 1e9))
    took.FromNanoseconds(int(record.seconds * 1e9))
    return experiment_pb2.Experiment(
        name=record.name,
        state=_STATES[record.phase],
        problems=record.problems,
        nodes=_nodes(plan) if plan else (),
        element_count=len(plan.elements) if plan else 0,
        lan_count=len(plan.lans) if plan else 0,
        start_time=started,
        rise_duration=took if record.seconds else None,
        files=[record.vtopo.name, *([record.ptopo.name] if record.ptopo else [])],
    )


def _nodes(plan: Plan) -> list[experiment_pb2.ExperimentNode]:
    machines = {planned.node: planned.name for planned in plan.elements.values() if planned.element.words.kind == "machine"}
    return [
        experiment_pb2.ExperimentNode(name=name, address=words.address, element=machines.get(name, ""))
        for name, words in plan.nodes.items()
    ]


def whole(record: ExperimentRecord, plan: Plan, holdings: Holdings) -> experiment_pb2.Experiment:
    """With its elements, as their nodes have them."""
    found = summary(record, plan)
    for node in found.nodes:
        if node.name in holdings.unreachable:
            node.problem = holdings.unreachable[node.name].message
    found.elements.extend(_element(planned, record, holdings) for planned in plan.elements.values())
    return found


def _element(planned: PlannedElement, record: ExperimentRecord, holdings: Holdings) -> experiment_pb2.Element:
    state, detail = _state(planned, record, holdings)
    container = holdings.containers.get((planned.node, planned.name))
    return experiment_pb2.Element(
        name=planned.name,
        kind=planned.element.words.kind,
        node=planned.node,
        container=planned.node_name,
        state=state,
        detail=detail,
        addresses=[address for nic in planned.element.nics for address in nic.addresses],
        nics_down=[nic.name for nic in container.nics if nic.is_down] if container is not None else (),
    )


def _state(planned: PlannedElement, record: ExperimentRecord, holdings: Holdings) -> tuple[experiment_pb2.ElementState.ValueType, str]:
    container = holdings.containers.get((planned.node, planned.name))
    if planned.node in holdings.unreachable:
        return experiment_pb2.ELEMENT_STATE_LOST, holdings.unreachable[planned.node].message
    if container is None:
        return experiment_pb2.ELEMENT_STATE_ABSENT, ""
    if container.state in _RUNS and planned.name in (failed := dict(record.failed)):
        return experiment_pb2.ELEMENT_STATE_FAILED, failed[planned.name]
    if container.state in _RUNS:
        detail = f"restarted {container.restarts} times" if container.restarts else ""
        is_up = record.phase is Phase.UP
        return (experiment_pb2.ELEMENT_STATE_READY if is_up else experiment_pb2.ELEMENT_STATE_RUNNING), detail
    if has_ended_well(container):
        return experiment_pb2.ELEMENT_STATE_ENDED, ""
    if container.state == api.CONTAINER_STATE_STOPPED:
        return experiment_pb2.ELEMENT_STATE_FAILED, how_it_ended(container)
    return experiment_pb2.ELEMENT_STATE_CREATED, ""
