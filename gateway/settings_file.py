"""Reading settings: a TOML file, two variables of the environment, what the command line overrides.

Every error is one line that names the file, the key and the mend, and shows no secret.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from gateway.settings import (
    DEFAULT_NAMESPACE,
    STORE_URL,
    TOKEN_SECRET,
    TOKEN_SECRET_CHARS_MIN,
    NamespaceSettings,
    Settings,
    misfits,
)
from mesh.errors import ConfigError
from registry.spec import sentence

ENVIRONMENT_KEY_ID: Final = "env"


def load(
    path: Path | None = None,
    *,
    serve: bool = False,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    namespaces: Sequence[Mapping[str, Any]] = (),
    env: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings of `path` (none: all defaults), under what the environment and `overrides` say.

    `overrides` are tables like the file's, from the command line; None values count as absent. `namespaces` stand for
    the file's. `serve`: a gateway against a given store, which needs its URL and completion keys. Raises ConfigError.
    """
    file = str(path) if path is not None else "settings"
    tables = _read(path)
    if namespaces:
        tables["namespaces"] = [dict(one) for one in namespaces]
    _table(tables, "egress", file).setdefault("allow_loopback", not serve)
    _apply_environment(tables, env, file)
    for name, values in (overrides or {}).items():
        _table(tables, name, file).update({key: value for key, value in values.items() if value is not None})
    try:
        settings = Settings.model_validate(tables)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise ConfigError(f"{file}: {_explain(found[0])}{more}") from None
    if settings.keyless and not any(one.name == DEFAULT_NAMESPACE for one in settings.namespaces):
        default = NamespaceSettings(name=DEFAULT_NAMESPACE)
        settings = settings.model_copy(update={"namespaces": [*settings.namespaces, default]})
    for wrong in misfits(settings, serve=serve):
        raise ConfigError(f"{file}: {wrong}")
    return settings


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read: {fault.strerror}; name a settings file with --config") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: not TOML: {fault}; mend that line") from None


def _table(tables: dict[str, Any], name: str, file: str) -> dict[str, Any]:
    table = tables.setdefault(name, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: {name}: not a table; write it as [{name}]")
    return cast("dict[str, Any]", table)


def _apply_environment(tables: dict[str, Any], env: Mapping[str, str], file: str) -> None:
    if url := env.get(STORE_URL):
        _table(tables, "store", file)["url"] = url
    if secret := env.get(TOKEN_SECRET):
        if len(secret) < TOKEN_SECRET_CHARS_MIN:
            detail = f"has fewer than {TOKEN_SECRET_CHARS_MIN} characters; make one with `openssl rand -hex 32`"
            raise ConfigError(f"environment: {TOKEN_SECRET}: {detail}")
        tokens = _table(tables, "tokens", file)
        keys = tokens.get("keys", {})
        tokens["keys"] = {**keys, ENVIRONMENT_KEY_ID: secret} if isinstance(keys, dict) else keys
        tokens["current"] = ENVIRONMENT_KEY_ID


def _explain(error: Any) -> str:
    """One pydantic error as `key: what is wrong; the mend`."""
    key = ""
    fields, field = _fields(Settings), None
    for part in error["loc"]:
        if isinstance(part, int):
            key += f"[{part}]"
            continue
        key += f".{part}" if key else str(part)
        if part in fields:
            field = fields[part]
            fields = _fields(NamespaceSettings if part == "namespaces" else field.annotation)
    if error["type"] == "extra_forbidden":
        return f"{key}: not a known setting; known here: {', '.join(fields)}"
    if error["type"] == "model_type":
        return f"{key}: not a table; write it as [{key}]"
    if error["type"] == "value_error":
        return f"{key}: {sentence(error)}"
    mend = f"; give {field.description}" if field is not None and field.description else ""
    return f"{key}: {sentence(error)}{mend}"


def _fields(model: Any) -> dict[str, FieldInfo]:
    """The fields of a table by the name they have in the file; none for a plain value."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return {}
    return {one.alias or name: one for name, one in model.model_fields.items()}
