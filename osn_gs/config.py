"""Options of a tool: dataclass defaults, then YAML files, then the command line, each over the one before."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import tyro
import yaml

from osn_gs.errors import ConfigError

T = TypeVar("T")


def parse_config(cls: type[T], arguments: list[str], program: str) -> T:
    """Build the dataclass `cls` from `--config FILE [FILE ...]` and command-line flags.

    YAML files hold only what differs from the defaults; later files win over earlier ones, flags over all.

    Raises ConfigError for a file that cannot be read, an unknown key or a value of the wrong type. A wrong
    flag is tyro's to report; it exits with code 2 as well.
    """
    files, flags = _split_config_files(arguments)
    values: dict[str, Any] = {}
    for file in files:
        values = _merge(values, _read_yaml(file))
    default = _build(cls, values, "")
    description = f"{inspect.getdoc(cls)}\n\n--config FILE [FILE ...] reads YAML files before these flags."
    return tyro.cli(cls, args=flags, default=default, prog=program, description=description)


def config_to_yaml(config: Any) -> str:
    """A dataclass as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(_to_plain(config), sort_keys=False)


def load_config(cls: type[T], path: Path) -> T:
    """Read a dataclass from one YAML file; keys left out keep their defaults."""
    return _build(cls, _read_yaml(path), "")


def _split_config_files(arguments: list[str]) -> tuple[list[Path], list[str]]:
    files: list[Path] = []
    flags: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if argument.startswith("--config="):
            files.append(Path(argument.split("=", 1)[1]))
        elif argument == "--config":
            if not remaining or remaining[0].startswith("-"):
                raise ConfigError("--config needs at least one YAML file after it.")
            while remaining and not remaining[0].startswith("-"):
                files.append(Path(remaining.pop(0)))
        else:
            flags.append(argument)
    return files, flags


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this configuration file: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}.") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of options at the top level, got {type(values).__name__}.")
    return values


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        both_nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_nested else value
    return merged


def _build(cls: type[T], values: dict[str, Any], where: str) -> T:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    arguments = {}
    for key, value in values.items():
        dotted = f"{where}.{key}" if where else str(key)
        if key not in names:
            close = difflib.get_close_matches(str(key), names, 1)
            hint = f"did you mean {close[0]}?" if close else f"known options: {', '.join(names)}."
            raise ConfigError(f"{dotted}: unknown option in a configuration file; {hint}")
        arguments[key] = _convert(hints[key], value, dotted)
    return cls(**arguments)


def _convert(annotation: Any, value: Any, where: str) -> Any:
    """A YAML value as the annotated type, or a ConfigError that names the option."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation) and isinstance(value, dict):
        return _build(typing.cast(type, annotation), value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (annotation,) = (argument for argument in arguments if argument is not type(None))
        return _convert(annotation, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where}: expected one of {', '.join(map(repr, arguments))}, got {value!r}.")
    if origin is tuple and arguments[-1] is Ellipsis and isinstance(value, (int, float, str)):
        value = [value]  # as on the command line, where one value is a tuple of one
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) == len(value):
            return tuple(_convert(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if annotation is float and not isinstance(value, bool) and isinstance(value, (int, float, str)):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as a string
        except ValueError:
            pass
    if isinstance(annotation, type) and type(value) is annotation:
        return value
    raise ConfigError(f"{where}: expected {getattr(annotation, '__name__', annotation)}, got {value!r}.")


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
