"""What a new contract breaks: proven, or said to be unproven; never one for the other."""

from __future__ import annotations

from datetime import date, datetime
from random import Random
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from registry.compat import Change, compare_services
from registry.contracts import Contract, Examiner
from registry.contracts.compare import REMARKS, TooComplex, compare
from registry.contracts.dialect import modern
from registry.contracts.validator import validator
from registry.spec import EndpointSpec, ServiceSpec, read_spec
from tests.unit.evolving import changed, document, value

VALUES = [value(Random(number)) for number in range(1_500)]


def services(*operations: dict[str, Any], name: str = "s") -> list[ServiceSpec]:
    body = {"services": [{"name": name, "operations": list(operations)}]}
    return read_spec(EndpointSpec, body).services or []


def told(changes: list[Change]) -> list[tuple[bool, str, str]]:
    return [(one.breaks, one.pointer.removeprefix("/services/0/operations/0"), one.detail) for one in changes]


def of_input(old: Any, new: Any) -> list[tuple[bool, str, str]]:
    return told(compare_services(services({"name": "o", "input": old}), services({"name": "o", "input": new})))


def of_output(old: Any, new: Any) -> list[tuple[bool, str, str]]:
    return told(compare_services(services({"name": "o", "output": old}), services({"name": "o", "output": new})))


class TestSoundness:
    @settings(max_examples=400, deadline=None)
    @given(st.integers(0, 1 << 40))
    def test_what_is_said_to_fit_fits_for_every_value(self, seed: int) -> None:
        """P178: whatever the old schema admits, the new one admits too, where the gate finds nothing."""
        r = Random(seed)
        old = document(r)
        new = changed(r, old) if r.random() < 0.8 else document(r)
        if Contract(old).why_unusable() or Contract(new).why_unusable():
            return
        try:
            found = [one for one in compare(old, new) if one.word not in REMARKS]
        except TooComplex:
            return
        if not found:
            before, after = validator(old), validator(new)
            assert [one for one in VALUES if before.is_valid(one) and not after.is_valid(one)] == []

    @settings(max_examples=100, deadline=None)
    @given(st.integers(0, 1 << 40))
    def test_a_schema_fits_itself(self, seed: int) -> None:
        one = document(Random(seed))
        if not Contract(one).why_unusable():
            assert [found for found in compare(one, one) if found.word not in REMARKS] == []


class TestInputs:
    @pytest.mark.parametrize(
        ("old", "new", "detail"),
        [
            ({"properties": {"a": {}}}, {"properties": {"a": {}}, "required": ["a"]},
             'the property "a" is required now'),
            ({"type": ["string", "null"]}, {"type": "string"}, "is no longer taken when it is null"),
            ({"type": "number"}, {"type": "integer"}, "is no longer taken when it is number"),
            ({"enum": ["a", "b"]}, {"enum": ["a"]}, 'the value "b" is no longer taken'),
            ({"const": "a"}, {"const": "b"}, 'the value "a" is no longer taken'),
            ({"type": "string"}, {"enum": ["a"]}, 'takes only ["a"] now'),
            ({"type": "integer", "minimum": 1}, {"type": "integer", "minimum": 5}, "must be at least 5 now, before 1"),
            ({"type": "string"}, {"type": "string", "maxLength": 5}, "must be of a length of at most 5 now"),
            ({"type": "array"}, {"type": "array", "uniqueItems": True}, "equal items are no longer taken"),
            (True, {"type": "integer"}, "is no longer taken when it is other than integer"),
            ({"type": "integer"}, False, "nothing is taken here any more"),
            ({"properties": {"a": {}}}, {"properties": {"b": {}}, "additionalProperties": False},
             'the property "a" is no longer taken'),
            ({"type": "object"}, {"type": "object", "dependentRequired": {"a": ["b"]}},
             'properties require others now: {"a": ["b"]}'),
            ({"anyOf": [{"type": "string"}, {"type": "array", "maxItems": 2}]}, {"anyOf": [{"type": "string"}]},
             "values of the type array may fit none of the 1 alternatives now"),
            ({"type": "string"}, {"anyOf": [{"type": "integer"}, {"type": "null"}]},
             "values of the type string may fit none of the 2 alternatives now"),
        ],
    )  # fmt: skip
    def test_what_callers_may_send_and_is_refused_now_breaks(self, old: Any, new: Any, detail: str) -> None:
        assert (True, f"input: {detail}") in [(breaks, said) for breaks, _, said in of_input(old, new)]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ({"properties": {"a": {"const": 1}}}, {"properties": {"a": {"const": 1}, "b": {"type": "null"}}}),
            ({"type": "integer"}, {"type": ["number", "null"]}),
            ({"type": "integer", "minimum": 5}, {"type": "integer", "minimum": 1}),
            ({"enum": ["a"]}, {"enum": ["a", "b"]}),
            ({"const": "a"}, {"type": "string"}),
            ({"type": "string"}, {"anyOf": [{"type": "null"}, {"type": "string"}]}),
            ({"anyOf": [{"type": "null"}, {"type": "string"}]}, {"type": ["null", "string"]}),
            ({"prefixItems": [{"type": "string"}], "items": False}, {"items": {"type": "string"}}),
            ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, {"type": "integer", "minimum": 2}),
            ({"$ref": "#/$defs/A", "$defs": {"A": {"items": {"$ref": "#/$defs/A"}}}},
             {"$ref": "#/$defs/B", "$defs": {"B": {"items": {"$ref": "#/$defs/B"}}}}),
            ({"type": "string", "title": "A"}, {"type": "string", "description": "another"}),
            ({"required": ["a"]}, True),
            ({"not": {"type": "string"}, "minimum": 3}, {"not": {"type": "string"}}),
        ],
    )  # fmt: skip
    def test_what_takes_as_much_or_more_is_fine(self, old: Any, new: Any) -> None:
        assert of_input(old, new) == []

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ({"type": "string", "pattern": "^[a-z]+$"}, {"type": "string", "pattern": "^[a-z0-9]+$"}),
            ({"type": "string"}, {"type": "string", "format": "date"}),
            ({"properties": {"a": {}}}, {"properties": {"a": {}}, "additionalProperties": False}),
            ({"properties": {"a": {}, "b": {}}}, {"properties": {"a": {}}}),
        ],
    )
    def test_what_cannot_be_proven_is_said_as_such_and_not_called_broken(self, old: Any, new: Any) -> None:
        assert [breaks for breaks, _, _ in of_input(old, new)] == [False]

    def test_each_break_has_the_place_in_the_new_registration(self) -> None:
        item = {"type": "object", "properties": {"n": {"type": ["integer", "null"]}}}
        now = {"type": "object", "properties": {"n": {"type": "integer"}}}
        schemas = [{"properties": {"a/b": {"items": one}}} for one in (item, now)]
        assert [at for _, at, _ in of_input(*schemas)] == ["/input/properties/a~1b/items/properties/n"]

    def test_an_operation_without_an_input_schema_took_anything(self) -> None:
        changes = compare_services(services({"name": "o"}), services({"name": "o", "input": {"type": "string"}}))
        assert [one.breaks for one in changes] == [True]


class TestOutputs:
    @pytest.mark.parametrize(
        ("old", "new", "detail"),
        [
            ({"type": "integer"}, {"type": ["integer", "null"]}, "may be null now"),
            ({"enum": ["a"]}, {"enum": ["a", "b"]}, 'may be "b" now'),
            ({"properties": {"a": {}}, "required": ["a"]}, {"properties": {"a": {}}},
             'the property "a" may be missing now'),
            ({"properties": {"a": {}, "b": {}}}, {"properties": {"a": {}}}, 'the property "b" is gone'),
            ({"type": "integer", "maximum": 5}, {"type": "integer"}, "need not be at most 5 any more: unbounded"),
            ({"properties": {}, "additionalProperties": False},
             {"properties": {"a": {}}, "additionalProperties": False},
             'may have the property "a" now, where others were excluded'),
        ],
    )  # fmt: skip
    def test_what_callers_do_not_expect_breaks(self, old: Any, new: Any, detail: str) -> None:
        assert (True, f"output: {detail}") in [(breaks, said) for breaks, _, said in of_output(old, new)]

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ({"properties": {"a": {}}}, {"properties": {"a": {}, "b": {}}}),
            ({"properties": {"a": {}}}, {"properties": {"a": {}}, "required": ["a"]}),
            ({"type": ["integer", "null"]}, {"type": "integer"}),
            ({"enum": ["a", "b"]}, {"enum": ["a"]}),
        ],
    )
    def test_what_callers_can_read_is_fine(self, old: Any, new: Any) -> None:
        assert of_output(old, new) == []

    def test_an_output_that_is_no_longer_described_is_unproven(self) -> None:
        changes = compare_services(services({"name": "o", "output": {"type": "string"}}), services({"name": "o"}))
        assert [(one.breaks, one.code) for one in changes] == [(False, "output_undescribed")]


class TestLists:
    def test_what_is_gone_breaks_and_what_is_new_does_not(self) -> None:
        old = [*services({"name": "a"}, {"name": "b"}), *services({"name": "c"}, name="t")]
        changes = compare_services(old, services({"name": "a"}, {"name": "new"}))
        assert [(one.code, one.service, one.operation, one.pointer) for one in changes] == [
            ("operation_removed", "s", "b", "/services/0/operations"),
            ("service_removed", "t", "", "/services"),
        ]
        assert compare_services(services({"name": "a"}), []) == []

    def test_opening_a_list_takes_back_the_contracts_in_it(self) -> None:
        """P179: else the registration after it could promise anything."""
        old = services({"name": "a", "input": {"type": "string"}}, {"name": "b"})
        for new, at in (([], "/services"), (services(), "/services/0")):
            changes = compare_services(old, new)
            assert [(one.breaks, one.code, one.operation, one.pointer) for one in changes] == [
                (True, "contract_withdrawn", "a", at)
            ]


class Leaf(BaseModel):
    kind: Literal["leaf"]
    value: float


class Sum(BaseModel):
    kind: Literal["sum"]
    left: Expression
    right: Expression


Expression = Annotated[Leaf | Sum, Field(discriminator="kind")]


class First(BaseModel):
    name: str
    kind: Literal["a", "b"] = "a"
    tags: list[str] = []
    note: str | None = None
    when: datetime
    by_name: dict[str, int] = {}
    tree: Expression
    pair: tuple[int, str] = (1, "")


class Second(First):
    extra: str = ""
    later: datetime | None = None


class Product(BaseModel):
    kind: Literal["product"]
    factors: list[Wider]


class WiderSum(BaseModel):
    kind: Literal["sum"]
    left: Wider
    right: Wider


Wider = Annotated[Leaf | WiderSum | Product, Field(discriminator="kind")]


class Third(BaseModel):
    name: Annotated[str, Field(max_length=10)]
    kind: Literal["a", "c"] = "a"
    tags: list[int] = []
    note: str = ""
    when: date
    by_name: dict[str, str] = {}
    tree: Wider
    pair: tuple[int, str] = (1, "")
    vat: str


class TestModels:
    """What pydantic makes of the types that agents have."""

    def test_optional_fields_may_be_added(self) -> None:
        assert of_input(First.model_json_schema(), Second.model_json_schema()) == []
        mode: Any = {"mode": "serialization"}
        assert of_output(First.model_json_schema(**mode), Second.model_json_schema(**mode)) == []

    def test_another_model_says_all_that_breaks_and_a_wider_tree_does_not(self) -> None:
        found = {
            at.rpartition("/input")[2]: breaks
            for breaks, at, _ in of_input(*(one.model_json_schema() for one in (First, Third)))
        }
        assert found == {
            "": True,
            "/properties/name": True,
            "/properties/kind": True,
            "/properties/tags/items": True,
            "/properties/note": True,
            "/properties/when": False,
            "/properties/by_name/additionalProperties": True,
        }

    def test_a_recursive_output_must_not_grow(self) -> None:
        found = of_output(*(one.model_json_schema() for one in (Sum, WiderSum)))
        assert found
        assert all(breaks for breaks, _, _ in found)


class TestElsewhere:
    async def test_the_process_finds_the_same(self) -> None:
        examiner = Examiner()
        old, new = First.model_json_schema(), Third.model_json_schema()
        assert await examiner.compare(modern(old), modern(new)) == compare(old, new)
        await examiner.close()

    async def test_what_takes_too_long_is_too_complex_and_the_next_is_compared(self) -> None:
        examiner = Examiner(time_ms=1)
        parts = [{"anyOf": [{"minLength": n}, {"pattern": f"a{n}"}]} for n in range(40)]
        many = [{"properties": {f"p{n}": one}} for n, one in enumerate(parts)]
        with pytest.raises(TooComplex):
            await examiner.compare({"anyOf": many}, {"oneOf": many[::-1]})
        await examiner.close()
