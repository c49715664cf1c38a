"""Schemas of other teams: which can be applied, what an input is told, and what a check can cost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.clock import monotonic_s, sleep
from mesh.errors import Malformed, TooMany, Unprocessable
from registry.contracts import SCHEMA_BYTES_MAX, Contract, Examiner
from registry.contracts.dialect import modern
from registry.contracts.examiner import EACH_WAITING_MAX, WAITING_MAX
from registry.gate import check_schemas
from registry.spec import EndpointSpec, read_spec

BODY_BYTES = 2 << 20
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
TREE: dict[str, Any] = {
    "$defs": {
        "t": {
            "type": "object",
            "required": ["k"],
            "oneOf": [
                {"properties": {"k": {"const": "add"}, "l": {"$ref": "#/$defs/t"}, "r": {"$ref": "#/$defs/t"}}},
                {"properties": {"k": {"const": "number"}, "v": {"type": "number"}}},
            ],
        }
    },
    "$ref": "#/$defs/t",
}


def doubling(count: int) -> dict[str, Any]:
    both = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(count)}
    return {"$defs": {**both, f"a{count}": {"type": "integer"}}, "$ref": "#/$defs/a0"}


def body(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def breaches(schema: Any, value: Any) -> dict[str, str]:
    return {one["pointer"]: one["detail"] for one in Contract(schema).breaches(value)}


class TestUsable:
    @pytest.mark.parametrize(
        ("schema", "why"),
        [
            ({"type": "nope"}, "not a JSON Schema"),
            ({"minimum": "1"}, "not a JSON Schema"),
            ({"pattern": "("}, "linear time"),
            ({"pattern": "(?=a)b"}, "linear time"),
            ({"pattern": r"(a)\1"}, "linear time"),
            ({"pattern": "((a{99}){99}){99}"}, "linear time"),
            ({"anyOf": [{"pattern": f"a{n}"} for n in range(51)]}, "more than 50 different patterns"),
            ({"anyOf": [{"pattern": f"[ab]*a[ab]{{3000}}{n}"} for n in range(9)]}, "too large together"),
            ({"$ref": "http://127.0.0.1:1/schema"}, "not followed"),
            ({"items": {"$ref": "file:///etc/passwd"}}, "not followed"),
            ({"$ref": "#/$defs/absent"}, "leads to no schema: #/$defs/absent"),
            ({"$ref": "#/enum/0", "enum": [{}]}, "leads to no schema"),
            ({"$ref": "#"}, "without end"),
            ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "without end"),
            ({"dependentSchemas": {"a": {"$ref": "#"}}}, "without end"),
            ({"not": {"$ref": "#"}}, "without end"),
            ({"properties": {"a": {"$ref": "#"}}, "unevaluatedProperties": False}, "refers to itself"),
            ({"description": "d" * SCHEMA_BYTES_MAX}, "larger than"),
            ({"$dynamicRef": "#a"}, "$dynamicRef is not supported; use $ref"),
            ({"properties": {"a": {"$id": "http://x/y"}}}, "at the top of a schema only at /properties/a"),
            ({"$schema": "http://json-schema.org/draft-04/schema#"}, "is not known"),
            ({"$schema": "https://example.com/mine"}, "is not known"),
            ({"anyOf": [True] * 1500}, "more than 1500 subschemas"),
            (doubling(20), "too many ways"),
            (doubling(400), "follow one from another"),
        ],
    )  # fmt: skip
    def test_a_schema_that_cannot_be_applied_or_bounded_says_why(self, schema: Any, why: str) -> None:
        """Nothing is fetched for it either (docs/why/attacks.md S1)."""
        assert why in Contract(schema).why_unusable()

    def test_a_deeply_nested_schema_is_refused(self) -> None:
        schema: dict[str, Any] = {}
        for _ in range(70):
            schema = {"not": schema}
        assert "deeper than 64" in Contract(schema).why_unusable()

    @pytest.mark.parametrize("schema", [TREE, doubling(8), True, {}, {"$id": "http://x/y", "items": {"$ref": "#"}}])
    def test_recursion_that_consumes_the_value_is_fine(self, schema: Any) -> None:
        assert Contract(schema).why_unusable() == ""

    async def test_what_was_there_before_is_not_read_again_and_each_fault_has_its_pointer(self) -> None:
        def spec(**fields: Any) -> EndpointSpec:
            return read_spec(EndpointSpec, {"services": [{"name": "s", "operations": [{"name": "o", **fields}]}]})

        await check_schemas(spec(input={"$ref": "#"}), spec(output={"$ref": "#"}))
        with pytest.raises(Unprocessable) as error:
            await check_schemas(spec(input={"$ref": "#"}, output={"type": "nope"}), None)
        assert error.value.code == "body_invalid"
        pointers = [one["pointer"] for one in error.value.errors]
        assert pointers == ["/services/0/operations/0/input", "/services/0/operations/0/output"]


NO_ALTERNATIVE = "must match one of 2 alternatives, and matches none"
TWO_ALTERNATIVES = "must match one of 2 alternatives, and matches 2"
CONTAINS = "must contain items of another kind, or another number of them"
SHORT = "must have at most 1 characters"
LONG_NAMES = {"a/b": {"maxLength": 1}, "~ü %": {"$ref": "#/properties/a~1b"}}


class TestBreaches:
    """P175: each breach has its place and its reason, and never what was sent."""

    @pytest.mark.parametrize(
        ("schema", "value", "found"),
        [
            ({"type": ["integer", "null"]}, "x", {"": "must be integer or null"}),
            ({"enum": ["a", 1]}, 2, {"": 'must be one of "a", 1'}),
            ({"items": {"type": "integer"}}, [1, "a", 2, None], {"/1": "must be integer", "/3": "must be integer"}),
            ({"items": {"type": "integer"}}, [0] * 999 + ["a"], {"/999": "must be integer"}),
            ({"prefixItems": [{"const": 1}], "items": False}, [2, 3],
             {"/0": "must be 1", "/1": "nothing is allowed here"}),
            ({"properties": LONG_NAMES}, {"a/b": "abc", "~ü %": "abc"}, {"/a~1b": SHORT, "/~0ü %": SHORT}),
            ({"required": ["a", "b"]}, {"b": 1}, {"": 'must have the property "a"'}),
            ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, {"": 'must have "b" beside "a"'}),
            ({"properties": {"a": {}}, "patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False},
             {"a": 1, "x1": 1, "q": 1}, {"/x1": "must be null", "/q": "this property is not known"}),
            ({"additionalProperties": {"type": "integer"}}, {"a": 1, "b": "x"}, {"/b": "must be integer"}),
            ({"propertyNames": {"maxLength": 1}}, {"ab": 1}, {"/ab": "this name is not allowed"}),
            ({"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 1}]}, "ab", {"": SHORT}),
            ({"anyOf": [{"type": "null"}, {"type": "string"}]}, 1, {"": NO_ALTERNATIVE}),
            ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, 5, {"": TWO_ALTERNATIVES}),
            ({"not": {"type": "null"}}, None, {"": "must not match what the schema excludes"}),
            ({"if": {"type": "string"}, "then": False, "else": {"minimum": 5}}, 3, {"": "must be at least 5"}),
            ({"contains": {"type": "null"}}, [1], {"": CONTAINS}),
            ({"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}]}, {"b": 1},
             {"": "has parts that no part of the schema allows"}),
            ({"uniqueItems": True}, [1, 1], {"": "must not have equal items"}),
            ({"$ref": "#x", "$defs": {"x": {"$anchor": "x", "multipleOf": 3}}}, 4, {"": "must be a multiple of 3"}),
            (TREE, {"k": "add", "l": {"k": "number", "v": "secret"}}, {"/l/v": "must be number"}),
            (False, 1, {"": "nothing is allowed here"}),
        ],
    )  # fmt: skip
    def test_a_breach_says_where_and_why(self, schema: Any, value: Any, found: dict[str, str]) -> None:
        assert Contract(schema).why_unusable() == ""
        assert breaches(schema, value) == found

    def test_a_breach_refuses_with_a_pointer_behind_that_of_the_input(self) -> None:
        contract = Contract({"type": "object", "required": ["q"], "properties": {"a/b": {"items": {"type": "null"}}}})
        contract.check(b'{"q": 1, "a/b": [null]}')
        with pytest.raises(Unprocessable) as error:
            contract.check(b'{"q": 1, "a/b": [null, "x"]}', "/input")
        assert error.value.code == "schema_breach"
        assert error.value.errors == [{"pointer": "/input/a~1b/1", "detail": "must be null"}]

    def test_an_absent_input_is_null_and_bad_json_is_not_a_breach(self) -> None:
        Contract({"type": "null"}).check(b"")
        Contract(True).check(b"[]")
        with pytest.raises(Unprocessable):
            Contract(False).check(b"1")
        with pytest.raises(Malformed):
            Contract(True).check(b"{")

    def test_a_value_deeper_than_the_walk_is_refused_all_the_same(self) -> None:
        value: Any = {"k": "number", "v": "x"}
        for _ in range(198):
            value = {"k": "add", "l": value}
        assert breaches(TREE, value)

    def test_no_more_breaches_than_fit_in_an_answer(self) -> None:
        assert len(Contract({"items": {"type": "null"}}).breaches([1] * 1000)) == 20


_scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "ab", "abc"]) | st.just(0.5)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)
_leaves = st.sampled_from(
    [
        {"type": "string"}, {"type": ["integer", "null"]}, {"enum": [1, "a", None]}, {"const": "ab"}, {"minimum": 1},
        {"maxLength": 1}, {"pattern": "^a"}, {"minItems": 2}, {"uniqueItems": True}, {"required": ["a"]}, True, False,
        {},
        {"maxProperties": 1}, {"exclusiveMaximum": 2}, {"minProperties": 1},
    ]
)  # fmt: skip


def _grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    many = st.lists(inner, min_size=1, max_size=2)
    named = st.dictionaries(st.sampled_from("ab"), inner, min_size=1, max_size=2)
    return st.fixed_dictionaries(
        {},
        optional={
            "allOf": many, "anyOf": many, "oneOf": many, "not": inner, "if": inner, "then": inner, "else": inner,
            "properties": named, "additionalProperties": inner, "propertyNames": inner, "contains": inner,
            "items": (inner | many).filter(lambda items: not isinstance(items, bool)),  # the judge takes its length
            "additionalItems": inner, "patternProperties": st.just({"^b": {"type": "null"}}),
            "dependencies": st.dictionaries(st.sampled_from("ab"), inner | st.just(["b"]), min_size=1, max_size=2),
            "$ref": st.just("#/definitions/d"),
        },
    )  # fmt: skip


_draft_7 = st.recursive(_leaves, _grown, max_leaves=8).map(
    lambda schema: {"$schema": DRAFT_7, "definitions": {"d": {"type": ["object", "string"]}}, "allOf": [schema]}
)


class TestAgainstAnotherValidator:
    @settings(max_examples=300, deadline=None)
    @given(schema=_draft_7, values=st.lists(_values, min_size=1, max_size=4))
    def test_a_schema_of_draft_7_means_here_what_it_means_there(self, schema: Any, values: list[Any]) -> None:
        """The judge is the jsonschema package with its own validator of that draft; here it was brought to 2020-12."""
        contract = Contract(schema)
        assert contract.why_unusable() == ""
        jsonschema.Draft202012Validator.check_schema(modern(schema))
        judge = jsonschema.Draft7Validator(schema)
        for value in values:
            found = contract.breaches(value)
            assert (found == []) == judge.is_valid(value)
            for one in found:
                at = value
                for part in one["pointer"].split("/")[1:]:
                    at = at[int(part)] if isinstance(at, list) else at[part]


HOSTILE: dict[str, tuple[Any, Any]] = {
    "(a+)+$": ({"pattern": "^(a+)+$"}, "a" * BODY_BYTES + "b"),
    "many states": ({"pattern": "[ab]*a[ab]{200}c"}, "ab" * (BODY_BYTES // 2)),
    "short strings": ({"items": {"pattern": "[ab]*a[ab]{60}c"}}, ["ab" * 50] * (BODY_BYTES // 103)),
    "uniqueItems": ({"uniqueItems": True}, list(range(BODY_BYTES // 8))),
    "uniqueItems of objects": ({"uniqueItems": True}, [{"a": [n % 7, n]} for n in range(BODY_BYTES // 18)]),
    "uniqueItems often": ({"allOf": [{"uniqueItems": True}] * 200}, ["x" * 999 + str(n) for n in range(1000)]),
    "recursive uniqueItems": ({"uniqueItems": True, "items": {"$ref": "#"}}, [[n] for n in range(BODY_BYTES // 9)]),
    "doubling": (doubling(20), 1),
    "doubling below the cap": (doubling(10), 1),
    "doubling down": ({"items": {"allOf": [{"$ref": "#"}, {"$ref": "#"}]}}, json.loads("[" * 199 + "]" * 199)),
    "numbers in an enum": ({"items": {"enum": [n + 0.25 for n in range(500)]}}, [0.5] * (BODY_BYTES // 4)),
    "numbers written out": ({"items": {"enum": list(range(99))}}, [10**4000] * (BODY_BYTES // 4001)),
    "small numbers": ({"items": {"multipleOf": 1e-300}}, [5e-324] * (BODY_BYTES // 7)),
    "alternatives": ({"items": {"anyOf": [{"type": "string"}] * 500}}, [0] * (BODY_BYTES // 2)),
    "conditions": (
        {"items": {"allOf": [{"if": {"const": n}, "then": False} for n in range(300)]}},
        [0.5] * (BODY_BYTES // 4),
    ),
    "names": ({"items": {"dependentRequired": {f"p{n}": ["a"] for n in range(1000)}}}, [{}] * (BODY_BYTES // 3)),
    "names by pattern": (
        {"patternProperties": {f"^a{n}.*b$": True for n in range(40)}},
        {f"x{n}": 0 for n in range(200_000)},
    ),
    "not evaluated": (
        {"unevaluatedProperties": False, "anyOf": [{"properties": {f"k{n}": True}} for n in range(200)]},
        {f"k{n}": 0 for n in range(200_000)},
    ),
    "one big wrong type": ({"type": "string"}, list(range(BODY_BYTES // 8))),
    "all items wrong": ({"items": {"type": "string"}}, list(range(BODY_BYTES // 8))),
    "no alternative for anything": ({"anyOf": [{"type": "string"}] * 300}, list(range(BODY_BYTES // 8))),
    "the tree": (TREE, json.loads('{"k":"add","l":' * 190 + "1" + "}" * 190)),
}  # fmt: skip


class TestCost:
    @pytest.mark.parametrize("name", list(HOSTILE))
    def test_a_hostile_schema_is_refused_or_checked_elsewhere_or_quick(self, name: str) -> None:
        """P176: what is checked in the event loop takes it less than 50 ms, whoever wrote schema and input."""
        schema, value = HOSTILE[name]
        contract = Contract(schema)
        if contract.why_unusable() or contract.heavy(body(value)):
            return
        contract.breaches(None)
        tries: list[float] = []
        for _ in range(3):
            begin_s = time.thread_time()
            contract.breaches(value)
            tries.append(time.thread_time() - begin_s)
        assert min(tries) < 0.05

    @pytest.mark.parametrize("name", ["alternatives", "recursion", "references", "properties", "patterns"])
    def test_a_hostile_schema_is_soon_judged(self, name: str) -> None:
        """P176: at registration, and by every gateway that first uses it."""
        letters = "(\\p{L}|\\p{N}|\\p{P}|\\p{S}|\\p{M})"
        schema = {
            "alternatives": {"anyOf": [{"type": "string"}] * 1_400},
            "recursion": {
                "$defs": {
                    f"d{n}": {
                        "anyOf": [{"properties": {"x": {"$ref": f"#/$defs/d{(n * 7 + m) % 35}"}}} for m in range(20)]
                    }
                    for n in range(35)
                },
                "$ref": "#/$defs/d0",
            },
            "references": {
                "$defs": {"a": {"properties": {f"p{n}": {"type": "string"} for n in range(200)}}},
                "properties": {f"q{n}": {"$ref": "#/$defs/a"} for n in range(1_200)},
            },
            "properties": {"properties": {f"p{n}": {"type": "string", "maxLength": n} for n in range(1_400)}},
            "patterns": {"anyOf": [{"pattern": f"{letters}{{4}}{n}"} for n in range(50)]},
        }[name]
        tries: list[float] = []
        for _ in range(3):
            begin_s = time.thread_time()
            Contract(schema).why_unusable()
            tries.append(time.thread_time() - begin_s)
        assert min(tries) < 0.15  # about 0.05 on a machine of its own

    def test_usual_inputs_are_checked_at_once(self) -> None:
        person = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 100},
                "mail": {"anyOf": [{"type": "string", "pattern": "^[^@]+@[^@]+$"}, {"type": "null"}]},
                "kind": {"enum": ["a", "b", "c"]},
                "age": {"type": "integer", "minimum": 0},
            },
            "required": ["name"],
        }
        one = {"name": "x" * 50, "mail": "somebody@example.com", "kind": "a", "age": 40}
        assert not Contract({"items": person}).heavy(body([one] * 50))
        assert Contract({"items": person}).heavy(body([one] * 10_000))
        assert not Contract({"items": {"type": "number"}}).heavy(body([0.25] * 5_000))


@pytest.fixture
async def examiner() -> AsyncIterator[Examiner]:
    one = Examiner()
    yield one
    await one.close()


HEAVY = Contract({"items": {"pattern": "^[a-z]+$"}})
WORDS = body(["abc"] * 50_000)
ENDLESS = Contract({"items": {"anyOf": [{"enum": [n + 0.25 for n in range(2000)]}, True]}})
FRACTIONS = body([0.5] * 200_000)


class TestExaminer:
    """P176: large inputs are checked in a process of their own, under a time limit."""

    async def test_a_large_input_is_judged_and_its_breach_found(self, examiner: Examiner) -> None:
        assert HEAVY.heavy(WORDS)
        await examiner.check(HEAVY, WORDS)
        with pytest.raises(Unprocessable) as error:
            await examiner.check(HEAVY, body(["abc"] * 50_000 + ["X"]), "/input")
        assert error.value.errors == [{"pointer": "/input/50000", "detail": "must match ^[a-z]+$"}]
        with pytest.raises(Malformed):
            await examiner.check(HEAVY, b"[" + b'"abc",' * 50_000)

    async def test_an_endless_check_is_refused_the_loop_goes_on_and_the_next_one_is_judged(self) -> None:
        examiner = Examiner(time_ms=200)
        await examiner.check(HEAVY, WORDS)
        beats: list[float] = []

        async def beat() -> None:
            while True:
                beats.append(monotonic_s())
                await sleep(0.005)

        task = asyncio.create_task(beat())
        with pytest.raises(Unprocessable) as error:
            await examiner.check(ENDLESS, FRACTIONS)
        task.cancel()
        assert error.value.code == "check_too_long"
        assert len(beats) > 5
        await examiner.check(HEAVY, WORDS)
        await examiner.close()

    async def test_a_caller_that_goes_away_leaves_no_answer_behind(self, examiner: Examiner) -> None:
        await examiner.check(HEAVY, WORDS)
        gone = asyncio.create_task(examiner.check(HEAVY, body(["X"] * 50_000)))
        await sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        await examiner.check(HEAVY, WORDS)

    async def test_more_than_can_wait_are_sent_away(self, examiner: Examiner) -> None:
        """P176, P185: and nobody takes the places of all."""
        greedy = [examiner.check(HEAVY, WORDS, whose="greedy") for _ in range(EACH_WAITING_MAX + 3)]
        others = [examiner.read(b"[" + b"[]," * 10_000 + b"1]", f"team {n % 2}") for n in range(WAITING_MAX)]
        found = await asyncio.gather(*greedy, *others, return_exceptions=True)
        refused = [n for n, one in enumerate(found) if one is not None]
        assert {type(found[n]) for n in refused} == {TooMany}
        assert [n for n in refused if n < len(greedy)] == [EACH_WAITING_MAX, EACH_WAITING_MAX + 1, EACH_WAITING_MAX + 2]
        assert len(refused) == 3 + EACH_WAITING_MAX, "as many of the others as there is room for"
        await examiner.check(HEAVY, WORDS, whose="greedy")
