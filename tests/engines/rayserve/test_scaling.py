"""Autoscaling targets and metrics of Ray Serve: from the recorded dashboard, and Ray's exporter."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from enginekit.drivers.sync import SyncDriver
from enginekit.engine import Answer, Call, Target
from enginekit.engines.rayserve import RayServe
from enginekit.engines.rayserve.scaling import APPLICATIONS, VERSION, Scaling, read_scaling
from enginekit.errors import (
    EngineFault,
    EngineTimeout,
    MalformedReply,
    Unauthorized,
    Unreachable,
    Unsupported,
)
from tests.engines.recordings import Recording, load, play, scene
from tests.support.server import Server, json_reply, text_reply

TARGET = Target(base_url="http://ingress", headers=(("authorization", "Bearer ingress-key"),))
STATUS = next(
    r
    for r in scene("rayserve/dashboard", "scene_dashboard")
    if r.path == APPLICATIONS and r.status == 200
)
SERVER = {
    "GET /v1/models": load("rayserve", "models"),
    "POST /v1/completions": load("rayserve", "completion"),
}
EXPORTED = """\
# TYPE ray_vllm_num_requests_running gauge
ray_vllm_num_requests_running{model_name="tiny",engine="0",ReplicaId="a"} 2.0
ray_vllm_num_requests_running{model_name="tiny",engine="0",ReplicaId="b"} 1.0
ray_vllm_num_requests_waiting{model_name="tiny",engine="0",ReplicaId="a"} 4.0
ray_vllm_kv_cache_usage_perc{model_name="tiny",engine="0",ReplicaId="a"} 0.5
ray_vllm_kv_cache_usage_perc{model_name="tiny",engine="0",ReplicaId="b"} 0.25
ray_serve_num_ongoing_http_requests{} 3.0
"""
"""Names and labels as Ray's exporter has them, `:` of vLLM's turned into `_`."""


def ray(**options: Any) -> RayServe:
    return RayServe(TARGET, options=options)


def status(**changes: Any) -> Scaling:
    """The recorded deployment with other limits."""
    told = json.loads(STATUS.body)
    deployment = told["applications"]["llm"]["deployments"]["LLMServer:tiny"]
    deployment["deployment_config"]["autoscaling_config"].update(changes)
    (one,) = read_scaling(told)
    return one


def test_the_recorded_deployment():
    """The ingress is no model server, and the builder's 1e9 is a target that nothing reaches."""
    (one,) = read_scaling(json.loads(STATUS.body))
    assert (one.application, one.deployment, one.status) == ("llm", "LLMServer:tiny", "HEALTHY")
    assert (one.running, one.starting, one.target_replicas) == (1, 0, 1)
    assert (one.min_replicas, one.max_replicas) == (1, 1)
    assert one.target_requests == 1e9
    assert not one.can_grow
    assert "max_replicas is 1" in one.sentence


def test_what_can_grow_and_what_never_does():
    assert status(max_replicas=4, target_ongoing_requests=32.0).can_grow
    never = status(max_replicas=4)
    assert not never.can_grow or never.most_requests == 1
    assert (
        "one more above 32 requests"
        in status(max_replicas=4, target_ongoing_requests=32.0).sentence
    )
    fixed = Scaling(
        application="a", deployment="d", status="HEALTHY", running=2, starting=0, target_replicas=2
    )
    assert not fixed.can_grow
    assert "fixed" in fixed.sentence
    unset = Scaling(
        application="a",
        deployment="d",
        status="HEALTHY",
        running=1,
        starting=0,
        target_replicas=1,
        min_replicas=1,
        max_replicas=4,
        target_requests=1e9,
        most_requests=10**9,
    )
    assert not unset.can_grow
    assert "1e+09" in unset.sentence


def test_a_dying_engine_as_the_dashboard_tells_it():
    """Seen 37 s after the engine core was killed: unhealthy, one replica goes and one comes."""
    told = json.loads(STATUS.body)
    deployment = told["applications"]["llm"]["deployments"]["LLMServer:tiny"]
    deployment["status"] = "UNHEALTHY"
    old = deployment["replicas"][0]
    deployment["replicas"] = [{**old, "state": "STOPPING"}, {**old, "state": "STARTING"}]
    (one,) = read_scaling(told)
    assert (one.status, one.running, one.starting) == ("UNHEALTHY", 0, 1)
    assert "0 of 1 replicas running" in one.sentence


def ready(told: Any, *rest: Any) -> bool:
    """What `ready()` says when the dashboard answers so, and the ingress as in `rest`."""
    operation = ray(dashboard="http://head:8265").ready("tiny")
    effect = next(operation)
    assert isinstance(effect, Call)
    assert (effect.target.base_url, effect.path) == ("http://head:8265", APPLICATIONS)
    try:
        for outcome in (told, *rest):
            if isinstance(outcome, Exception):
                operation.throw(outcome)
            else:
                operation.send(outcome)
    except StopIteration as stop:
        return bool(stop.value)
    raise AssertionError("it asked for more")


def dashboard(status: str, *states: str, target: int = 1, message: str = "") -> Answer:
    """The recorded status with another state of the model's deployment."""
    told = json.loads(STATUS.body)
    deployment = told["applications"]["llm"]["deployments"]["LLMServer:tiny"]
    old = deployment["replicas"][0]
    deployment["replicas"] = [{**old, "state": state} for state in states]
    deployment |= {"status": status, "target_num_replicas": target, "message": message}
    return Answer(status=200, headers={}, body=json.dumps(told).encode())


LISTED, TOKEN = SERVER["GET /v1/models"].answer, SERVER["POST /v1/completions"].answer


def test_ready_asks_no_token_of_a_deployment_without_a_replica():
    """Recorded at the start: UPDATING with a replica STARTING, minutes after the ingress answers."""
    assert not ready(dashboard("UPDATING", "STARTING"))
    assert not ready(dashboard("UNHEALTHY", "STOPPING", "STARTING"))


def test_ready_believes_a_token_only():
    """That a replica runs Ray says for half a minute of an engine that is dead."""
    assert ready(STATUS.answer, LISTED, TOKEN)
    assert not ready(STATUS.answer, LISTED, EngineTimeout("silent"))


def test_ready_wakes_what_was_scaled_to_zero():
    assert not ready(dashboard("HEALTHY", target=0), LISTED, EngineTimeout("it starts"))
    assert ready(dashboard("HEALTHY", target=0), LISTED, TOKEN)


def test_ready_raises_what_ray_has_given_up():
    """DEPLOY_FAILED of ray/serve/_private/common.py: no replica is started any more."""
    failed = dashboard("DEPLOY_FAILED", message="The deployment failed to start 3 times in a row.")
    with pytest.raises(EngineFault, match="failed to start 3 times"):
        ready(failed)


def test_a_dashboard_that_does_not_answer_costs_no_readiness():
    assert ready(Unreachable("refused"), LISTED, TOKEN)


@pytest.mark.parametrize(
    ("deployment", "model", "yes"),
    [
        ("LLMServer:tiny", "tiny", True),
        ("LLMServer:tiny", "tiny:adapter", True),
        ("LLMServer:meta-llama--Llama-3_1-8B", "meta-llama/Llama-3.1-8B", True),
        ("LLMServer:qwen3:8b", "qwen3:8b", True),
        ("LLMServer:tinier", "tiny", False),
        ("OpenAiIngress", "tiny", False),
    ],
)
def test_which_deployment_holds_a_model(deployment, model, yes):
    """Named by `LLMServer:` and the model id, as ray's llm builder spells it."""
    one = replace(status(), deployment=deployment)
    assert one.holds(model) is yes


def test_the_version_is_rays_and_vllms():
    version = next(r for r in scene("rayserve/dashboard", "scene_dashboard") if r.path == VERSION)
    answers = {**SERVER, f"GET {APPLICATIONS}": STATUS, f"GET {VERSION}": version}
    facts = play(ray(dashboard="http://head:8265", dashboard_token="t").probe(), answers)
    assert facts.version == "ray 2.60.0, vllm 0.32.0"
    assert facts.verified


def test_a_probe_reads_the_targets_with_the_token_and_without_the_key():
    seen: list[Call] = []
    operation = ray(dashboard="http://head:8265/", dashboard_token="t").probe()
    effect = next(operation)
    try:
        while True:
            assert isinstance(effect, Call)
            seen.append(effect)
            answers: dict[str, Recording] = {
                **SERVER,
                f"GET {APPLICATIONS}": STATUS,
                f"GET {VERSION}": STATUS,
            }
            effect = operation.send(answers[f"{effect.method} {effect.path}"].answer)
    except StopIteration as stop:
        facts = stop.value
    (asked,) = [call for call in seen if call.path == APPLICATIONS]
    assert asked.target.base_url == "http://head:8265"
    assert asked.target.headers == (("authorization", "Bearer t"),)
    (one,) = facts.extra["scaling"]
    assert one.deployment == "LLMServer:tiny"
    assert any(note.startswith("autoscaling of LLMServer:tiny") for note in facts.notes)


def test_a_dashboard_that_refuses_costs_a_note_and_no_probe():
    refused = next(r for r in scene("rayserve/dashboard", "scene_dashboard") if r.status == 401)
    answers = {**SERVER, f"GET {APPLICATIONS}": refused}
    facts = play(ray(dashboard="http://head:8265").probe(), answers)
    assert any("could not be read" in note for note in facts.notes)
    with pytest.raises(Unauthorized):
        play(ray(dashboard="http://head:8265").scaling(), answers)


def test_without_the_options_nothing_is_asked():
    with pytest.raises(Unsupported, match="dashboard"):
        next(ray().scaling())
    with pytest.raises(Unsupported, match="exporter"):
        next(ray().load_state())
    assert ray().capability("metrics").support == "none"
    assert ray(exporter="http://node:8080").capability("metrics").support == "native"


@pytest.mark.parametrize("body", [b"[]", b"{}", b"<html>", b'{"applications": 3}'])
def test_something_else_at_the_dashboard_is_malformed(body):
    answer = Answer(status=200, headers={}, body=body)
    with pytest.raises(MalformedReply):
        play(ray(dashboard="http://head:8265").scaling(), {f"GET {APPLICATIONS}": answer})


def test_metrics_of_the_replicas_over_sockets():
    with Server() as exporter, Server() as dashboard:
        exporter.on("/metrics", text_reply(EXPORTED))
        dashboard.on(APPLICATIONS, json_reply(json.loads(STATUS.body)))
        engine = ray(exporter=exporter.url, dashboard=dashboard.url)
        found = SyncDriver().run(engine.load_state())
        assert [seen.headers.get("authorization") for seen in exporter.requests] == [None]
    assert (found.running, found.waiting, found.kv_cache_usage) == (3, 4, 0.375)
    assert found.extra["replicas_running:LLMServer:tiny"] == 1.0
    assert found.extra["ray_serve_num_ongoing_http_requests"] == 3.0
