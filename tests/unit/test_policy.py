"""What a team may register, what stands in for what it leaves out, and what it is told when it is wrong."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.errors import Malformed, Unprocessable
from registry.contracts import pointer
from registry.policy import START_LEASE_GRACE_MS, Policy, Retry
from registry.spec import (
    LABELS_MAX,
    OPERATIONS_MAX,
    EndpointSpec,
    InstanceSpec,
    check_instance,
    check_namespace,
    check_url,
    read_spec,
)


def refused(kind: type[Any], value: Any) -> dict[str, str]:
    """Pointer -> detail of what is wrong with `value`."""
    with pytest.raises(Unprocessable) as error:
        read_spec(kind, value)
    assert error.value.code == "body_invalid"
    return {one["pointer"]: one["detail"] for one in error.value.errors}


class TestDefaults:
    def test_the_defaults_are_those_of_the_documents(self) -> None:
        """Every field may be left out."""
        assert Policy().model_dump() == {
            "request_timeout_ms": 30_000,
            "schedule_to_close_ms": None,
            "schedule_to_start_ms": None,
            "start_to_close_ms": None,
            "heartbeat_ms": None,
            "retry": {"initial_ms": 1_000, "factor": 2.0, "max_ms": 60_000, "jitter": 0.2, "max_attempts": 20},
            "max_concurrency": None,
            "rate_per_s": None,
            "breaker": {"failures": 5, "open_ms": 5_000},
            "probe": {"kind": "http", "path": "/healthz", "every_ms": 10_000, "timeout_ms": 2_000, "failures": 2},
            "canaries": [],
            "flapping": {"arrivals": 4, "within_ms": 60_000},
            "max_waiting": None,
            "max_delayed": None,
            "limits": {},
        }

    def test_an_empty_registration_is_one(self) -> None:
        spec = read_spec(EndpointSpec, {})
        assert (spec.target.kind, spec.services, spec.allow, spec.policy) == ("http", None, [], Policy())
        assert spec.document() == b"{}"

    def test_a_record_put_back_is_the_same_document(self) -> None:
        """GET shows the whole policy; whoever puts that back changes nothing."""
        given = {"policy": {"max_concurrency": 4}, "services": [{"name": "s", "operations": [{"name": "o"}]}]}
        spec = read_spec(EndpointSpec, given)
        shown = given | {"policy": spec.policy.model_dump(), "labels": {}, "allow": [], "description": ""}
        assert read_spec(EndpointSpec, shown).document() == spec.document()

    def test_an_instance_lives_five_seconds(self) -> None:
        assert read_spec(InstanceSpec, {"url": "http://a:1"}).ttl_ms == 5_000

    def test_a_start_is_leased_for_longer_than_its_request(self) -> None:
        assert Policy(request_timeout_ms=200).start_lease_ms == 200 + START_LEASE_GRACE_MS

    def test_back_off_doubles_up_to_its_cap(self) -> None:
        retry = Retry(initial_ms=100, max_ms=1_000)
        assert [retry.delay_ms(attempt) for attempt in (1, 2, 3, 4, 5, 900)] == [100, 200, 400, 800, 1_000, 1_000]
        assert Retry(initial_ms=1, factor=10.0).delay_ms(1_000) == 60_000


class TestPolicyBounds:
    @pytest.mark.parametrize(
        ("policy", "at"),
        [
            ({"request_timeout_ms": 99}, "/request_timeout_ms"),
            ({"request_timeout_ms": "30000"}, "/request_timeout_ms"),
            ({"request_timeout_ms": True}, "/request_timeout_ms"),
            ({"schedule_to_close_ms": 0}, "/schedule_to_close_ms"),
            ({"start_to_close_ms": 10**12}, "/start_to_close_ms"),
            ({"heartbeat_ms": 499}, "/heartbeat_ms"),
            ({"max_concurrency": 0}, "/max_concurrency"),
            ({"rate_per_s": 0}, "/rate_per_s"),
            ({"rate_per_s": float("inf")}, "/rate_per_s"),
            ({"rate_per_s": float("nan")}, "/rate_per_s"),
            ({"retry": {"factor": 0.5}}, "/retry/factor"),
            ({"retry": {"jitter": 1.5}}, "/retry/jitter"),
            ({"retry": {"max_attempts": 0}}, "/retry/max_attempts"),
            ({"retry": {"max_attempts": 1_001}}, "/retry/max_attempts"),
            ({"retry": {"initial_ms": 10, "max_ms": 5}}, "/retry"),
            ({"breaker": {"failures": -1}}, "/breaker/failures"),
            ({"breaker": {"open_ms": 99}}, "/breaker/open_ms"),
            ({"no_such_field": 1}, "/no_such_field"),
            ({"breaker": {"nor_this": 1}}, "/breaker/nor_this"),
        ],
    )
    def test_a_value_out_of_bounds_is_named_by_its_pointer(self, policy: dict[str, Any], at: str) -> None:
        assert list(refused(Policy, policy)) == [at]


class TestSpec:
    @pytest.mark.parametrize(
        ("body", "at"),
        [
            ([], ""),
            ({"target": {"kind": "smtp"}}, "/target/kind"),
            ({"target": {"kind": "pull", "url": "http://a:1"}}, "/target"),
            ({"target": {"url": "x" * 2_049}}, "/target/url"),
            ({"services": [{}]}, "/services/0/name"),
            ({"services": [{"name": "a\nb"}]}, "/services/0/name"),
            ({"services": [{"name": ".."}]}, "/services/0/name"),
            ({"services": [{"name": "é" * 501}]}, "/services/0/name"),
            ({"services": [{"name": "a"}, {"name": "a"}]}, ""),
            ({"services": [{"name": "a", "operations": [{"name": "o"}, {"name": "o"}]}]}, "/services/0"),
            (
                {"services": [{"name": "a", "operations": [{"name": "o", "extra": 1}]}]},
                "/services/0/operations/0/extra",
            ),
            ({"allow": ["Upper"]}, "/allow/0"),
            ({"allow": "*"}, "/allow"),
            ({"labels": {"a b": "c"}}, "/labels/a b"),
            ({"labels": {"a": 1}}, "/labels/a"),
            ({"labels": {f"k{n}": "v" for n in range(LABELS_MAX + 1)}}, "/labels"),
            ({"description": "d" * 4_097}, "/description"),
            ({"policy": {"retry": {"factor": "2"}}}, "/policy/retry/factor"),
        ],
    )
    def test_what_is_wrong_is_named_by_its_pointer(self, body: Any, at: str) -> None:
        assert list(refused(EndpointSpec, body)) == [at]

    def test_the_number_of_operations_has_a_bound_over_all_services(self) -> None:
        half = [{"name": f"o{n}"} for n in range(OPERATIONS_MAX // 2 + 1)]
        body = {"services": [{"name": "a", "operations": half}, {"name": "b", "operations": half}]}
        assert "at most" in refused(EndpointSpec, body)[""]

    @pytest.mark.parametrize("ttl_ms", [499, 300_001, "5000", None])
    def test_a_lease_has_bounds(self, ttl_ms: Any) -> None:
        assert list(refused(InstanceSpec, {"url": "http://a:1", "ttl_ms": ttl_ms})) == ["/ttl_ms"]

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "a",
            "ftp://a/",
            "http://",
            "http:///x",
            "//a",
            "http://a:0/",
            "http://a:x/",
            "http://a/?b",
            "http://a/#b",
        ],
    )
    def test_a_url_is_one_that_paths_can_be_put_behind(self, url: str) -> None:
        with pytest.raises(Malformed) as error:
            check_url(url, "/url")
        assert (error.value.code, error.value.errors[0]["pointer"]) == ("url_invalid", "/url")

    @pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a" * 64, "a b", "a.b", "ä"])
    def test_namespace_names_have_rules(self, name: str) -> None:
        with pytest.raises(Malformed):
            check_namespace(name)

    @pytest.mark.parametrize("name", ["", "target", "a/b", "a%2fb", ".a", "a" * 129, "{x}", "a\x00"])
    def test_instance_ids_have_rules(self, name: str) -> None:
        with pytest.raises(Malformed):
            check_instance(name)
        assert check_instance("host-1:8000.x_y") == "host-1:8000.x_y"


class TestLimits:
    def test_what_is_left_out_follows_the_star_and_then_the_endpoint(self) -> None:
        """P333; the store gets every one of them whole."""
        limits = {"a": {"weight": 3}, "*": {"max_concurrency": 2, "rate_per_s": 10}, "b": {"max_waiting": 7}}
        policy = read_spec(EndpointSpec, {"policy": {"max_waiting": 9, "limits": limits}}).policy
        assert policy.share("a").model_dump() == {
            "rate_per_s": 10.0, "max_concurrency": 2, "weight": 3, "max_waiting": 9, "max_delayed": None
        }  # fmt: skip
        assert policy.shares() == ["*", "10.0 2 1 9 0", "a", "10.0 2 3 9 0", "b", "10.0 2 1 7 0"]
        assert (Policy().shares(), Policy(max_concurrency=1).shares()) == ([], [])
        assert Policy(max_delayed=4).shares() == ["*", "0 0 1 0 4"]
        assert set(policy.seen_by("b")["limits"]) == {"*", "b"}

    def test_bounds_have_pointers(self) -> None:
        """P333."""
        found = refused(EndpointSpec, {"policy": {"limits": {"a": {"weight": 0}}, "max_waiting": 0}})
        assert set(found) == {"/policy/limits/a/weight", "/policy/max_waiting"}
        assert set(refused(EndpointSpec, {"policy": {"limits": {"A B": {}}}})) == {"/policy/limits/A B"}


class TestSchemas:
    def test_a_schema_survives_the_way_into_the_store(self) -> None:
        schema = {"const": None, "examples": [None, {}]}
        spec = read_spec(EndpointSpec, {"services": [{"name": "s", "operations": [{"name": "o", "input": schema}]}]})
        assert msgspec.json.decode(spec.document())["services"][0]["operations"][0]["input"] == schema

    def test_pointers_are_escaped(self) -> None:
        assert pointer(["a/b", 0, "~"]) == "/a~1b/0/~0"
