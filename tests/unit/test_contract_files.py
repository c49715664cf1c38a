"""Contracts on disk: what `*.nexusrpc.yaml` says, and the Python that callers get of a contract."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from mesh.agent.codec import Codec
from mesh.errors import Malformed
from registry.compat import compare_services
from registry.contracts import Contract
from registry.contracts.idl import read_contracts
from registry.contracts.python import generate
from registry.spec import EndpointSpec, read_spec

ROOT = Path(__file__).parents[2]
SHARED = """
nexusrpc: 1.0.0
types:
  Money: {type: object, properties: {amount: {type: integer}, of: {$ref: '#/types/Currency'}}, required: [amount]}
  Currency: {enum: [EUR, CHF]}
"""
BILLING = """
nexusrpc: 1.2.3
services:
  billing:
    description: Bills.
    operations:
      create:
        description: Make one.
        input: {$ref: '#/types/Order'}
        output: {$ref: 'shared.nexusrpc.yaml#/types/Money'}
      pair: {input: {items: [{type: string}, {type: integer}], additionalItems: false}}
      native: {input: {$pythonRef: 'decimal:Decimal'}, output: {$pythonRef: 'x:Y', $ref: '#/types/Order'}}
      ping:
types:
  Order:
    type: object
    properties: {lines: {type: array, items: {$ref: '#/types/Line'}}}
    dependencies: {lines: [currency]}
  Line: {type: object, properties: {price: {$ref: 'shared.nexusrpc.yaml#/types/Money'}, under: {$ref: '#/types/Line'}}}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "shared.nexusrpc.yaml").write_text(SHARED)
    (tmp_path / "billing.nexusrpc.yaml").write_text(BILLING)
    return tmp_path


class TestLoader:
    """P182."""

    def test_each_operation_has_the_types_it_uses_in_2020_12(self, files: Path) -> None:
        (service,) = read_contracts(files / "billing.nexusrpc.yaml")
        assert (service["name"], service["description"]) == ("billing", "Bills.")
        create, pair, native, ping = service["operations"]
        assert (create["name"], create["description"]) == ("create", "Make one.")
        assert create["input"]["$ref"] == "#/$defs/Order"
        assert create["input"]["$defs"].keys() == {"Order", "Line", "Money", "Currency"}
        assert create["output"]["$defs"].keys() == {"Money", "Currency"}
        assert pair["input"] == {"prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False}
        assert ("input" in native, native["output"]["$ref"]) == (False, "#/$defs/Order")
        assert (ping["input"], ping["output"]) == ({"type": "null"}, {"type": "null"})
        contract = Contract(create["input"])
        assert contract.why_unusable() == ""
        assert contract.breaches({"lines": [{"price": {"amount": 1, "of": "USD"}}], "currency": 1}, "/input") == [
            {"pointer": "/input/lines/0/price/of", "detail": 'must be one of "EUR", "CHF"'}
        ]
        assert [one["pointer"] for one in contract.breaches({"lines": []})] == [""]

    def test_two_types_of_one_name_in_two_files_stay_two(self, tmp_path: Path) -> None:
        (tmp_path / "a.nexusrpc.yaml").write_text(
            "nexusrpc: 1.0.0\nservices: {s: {operations: {o: {input: {anyOf: [{$ref: '#/types/T'},"
            " {$ref: 'b.nexusrpc.yaml#/types/T'}]}}}}}\ntypes: {T: {type: string}}"
        )
        (tmp_path / "b.nexusrpc.yaml").write_text("nexusrpc: 1.0.0\ntypes: {T: {type: integer}}")
        (service,) = read_contracts(tmp_path / "a.nexusrpc.yaml")
        assert service["operations"][0]["input"]["$defs"] == {"T": {"type": "string"}, "T2": {"type": "integer"}}

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("services: {}", "`nexusrpc` says the version"),
            ("nexusrpc: 2.0.0", "`nexusrpc` says the version"),
            ("nexusrpc: 1.0.0\nextra: 1", "'extra' is not known here; it has nexusrpc, services, types"),
            ("nexusrpc: 1.0.0\nservices: {s: {operations: {o: {errors: {}}}}}", "#/services/s/operations/o: 'errors'"),
            ("nexusrpc: 1.0.0\nservices: {s: {operations: {o: {input: {$ref: '#/types/T'}}}}}", "there is no type 'T'"),
            (
                "nexusrpc: 1.0.0\nservices: {s: {operations: {o: {input: {$ref: 'http://x/y#/types/T'}}}}}",
                "no reference",
            ),
            (
                "nexusrpc: 1.0.0\nservices: {s: {operations: {o: {input: {$ref: '#/$defs/T'}}}}}",
                "no reference to a type",
            ),
            (
                "nexusrpc: 1.0.0\nservices: {s: {operations: {o: {input: {$ref: 'no.yaml#/types/T'}}}}}",
                "cannot be read",
            ),
            ("nexusrpc: 1.0.0\nservices: {s: {operations: {o: {input: 7}}}}", "a schema is an object, true or false"),
            ("nexusrpc: 1.0.0\nservices: [s]", "expected names"),
            ("- 1", "expected an object"),
            ("{", "neither YAML nor JSON"),
        ],
    )
    def test_a_bad_file_says_what_and_where(self, tmp_path: Path, text: str, why: str) -> None:
        file = tmp_path / "bad.nexusrpc.yaml"
        file.write_text(text)
        with pytest.raises(Malformed) as error:
            read_contracts(file)
        assert why in error.value.detail
        assert "bad.nexusrpc.yaml" in error.value.detail or "no.yaml" in error.value.detail

    def test_a_service_is_declared_once(self, files: Path) -> None:
        (files / "again.nexusrpc.yaml").write_text("nexusrpc: 1.0.0\nservices: {billing: {}}")
        with pytest.raises(Malformed, match="is in another file already"):
            read_contracts(files / "billing.nexusrpc.yaml", files / "again.nexusrpc.yaml")

    def test_the_contracts_in_specs_are_read_and_fit_themselves(self) -> None:
        found = read_contracts(*sorted((ROOT / "specs").glob("*.nexusrpc.yaml")))
        services = read_spec(EndpointSpec, {"services": found}).services or []
        assert len(services) >= 4
        assert compare_services(services, services) == []


class Leaf(BaseModel):
    kind: Literal["leaf"]
    value: float


class Branch(BaseModel):
    kind: Literal["branch"]
    left: Leaf | Branch
    right: Leaf | Branch


class Odd(BaseModel):
    r"""Names and "quotes" \ that a generator trips over."""

    class_: str = Field(alias="class")
    json_: int = Field(default=3, alias="json")
    date_: str | None = Field(default=None, alias="date")
    dashed: int = Field(default=1, alias="a-b c")
    hidden: int = Field(default=1, alias="_x")
    count: int = Field(default=2, ge=1, le=5)
    tags: list[str] = []
    tree: Leaf | Branch
    by_name: dict[str, list[int]] = {}
    pair: tuple[int, str]
    mode: Literal["a", "b"] = "a"
    free: Any = None


NESTED = {
    "$defs": {"J": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/J"}}]}},
    "$ref": "#/$defs/J",
}
BASE = {"$defs": {"A": {"type": "object", "properties": {"x": {"type": "string"}}}}}
SERVICES: list[dict[str, Any]] = [
    {
        "name": "in voice",
        "description": 'Bills, """quoted""".',
        "operations": [
            {"name": "create order", "input": Odd.model_json_schema(), "output": Odd.model_json_schema()},
            {"name": "a/b", "input": {"type": ["string", "null"]}, "output": NESTED},
            {"name": "class", "input": {"allOf": [{"$ref": "#/$defs/A"}, {"properties": {"y": {"const": 1}}}], **BASE}},
            {"name": "start", "output": {"properties": {"z": {"type": "boolean"}}, "additionalProperties": False}},
            {"name": "start start", "input": {"type": "null"}},
        ],
    },
    {"name": "in-voice", "operations": [{"name": "ping"}]},
    {"name": "open"},
]


def load(text: str, file: Path) -> ModuleType:
    file.write_text(text)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TestGenerator:
    """P183."""

    def test_both_forms_are_strictly_typed(self, tmp_path: Path) -> None:
        for name, blocking in (("async_form", False), ("sync_form", True)):
            (tmp_path / f"{name}.py").write_text(generate("my-billing", SERVICES, blocking=blocking))
        files = sorted((ROOT / "specs").glob("*.nexusrpc.yaml"))
        (tmp_path / "specs.py").write_text(generate("specs", read_contracts(*files)))
        settings = {"typeCheckingMode": "strict", "pythonVersion": "3.11", "extraPaths": [str(ROOT)]}
        (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
        command = [sys.executable, "-m", "pyright", "-p", str(tmp_path), "--pythonpath", sys.executable]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_values_go_out_as_they_were_set_and_come_in_by_their_names(self, tmp_path: Path) -> None:
        module = load(generate("my-billing", SERVICES), tmp_path / "generated_values.py")
        tree = module.Branch(
            kind="branch", left=module.Leaf(kind="leaf", value=1), right=module.Leaf(kind="leaf", value=2)
        )
        odd = module.Odd(class_="c", tree=tree, pair=(1, "a"), date_=None)
        sent = json.loads(Codec(module.Odd).encode(odd)[1])
        leaves = [{"kind": "leaf", "value": 1.0}, {"kind": "leaf", "value": 2.0}]
        assert sent == {
            "class": "c",
            "date": None,
            "tree": {"kind": "branch", "left": leaves[0], "right": leaves[1]},
            "pair": [1, "a"],
        }
        assert Contract(Odd.model_json_schema()).breaches(sent) == []
        back = TypeAdapter(module.Odd).validate_python(sent | {"a-b c": 7, "_x": 8, "unheard of": 1})
        assert (back.a_b_c, back.x, back.count, back.mode, back.json_) == (7, 8, 2, "a", 3)
        alias = module.InVoiceService.a_b
        assert TypeAdapter(alias.output_type).validate_python(["a", ["b"]]) == ["a", ["b"]]
        with pytest.raises(ValueError, match="extra"):
            TypeAdapter(module.InVoiceService.start.output_type).validate_python({"q": 1})

    def test_names_never_collide(self, tmp_path: Path) -> None:
        module = load(generate("my-billing", SERVICES), tmp_path / "generated_names.py")
        billing = module.MyBilling(None)
        assert {"in_voice", "in_voice_", "open"} <= vars(billing).keys()
        assert {"create_order", "start_create_order", "class_", "start", "start_start", "start_start_"} <= set(
            dir(billing.in_voice)
        )


def test_the_generated_module_says_who_it_is() -> None:
    text = generate("my-billing", SERVICES, version="7")
    assert text.startswith('"""Calls of the endpoint my-billing, registration 7. Written by `mesh contract generate`')
