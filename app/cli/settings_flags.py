"""Flags for the settings: the commands that run a service, or work on its data, have a flag for every setting.

typer reads the flags of a command from the signature of a callable, and `Settings` has 50 fields. So such a command is made
into a dataclass with a field for each flag: typer calls the class, and the new object runs the command.
docs/decisions/0015-flags-for-the-settings.md has the alternatives.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import field, make_dataclass
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from app.settings import Settings


def with_settings(command: Callable[..., None]) -> type:
    """Return a command that has a flag for every setting, and the flags and arguments of `command`.

    `command` is called with `settings`. A flag becomes the setting's environment variable, so that the processes that the
    command starts have the same settings. A wrong value ends the process with exit code 2 and a line for each error.
    """
    hints = get_type_hints(command, include_extras=True)
    own = [parameter for parameter in inspect.signature(command).parameters.values() if parameter.name != "settings"]

    def run(flags: object) -> None:
        values = dict(vars(flags))
        arguments = {parameter.name: values.pop(parameter.name) for parameter in own}
        os.environ |= {_variable(name): str(value) for name, value in values.items() if value is not None}
        command(settings=_read_settings(), **arguments)

    fields = [
        (parameter.name, hints[parameter.name], field() if parameter.default is parameter.empty else parameter.default)
        for parameter in own
    ]
    fields += [(name, _flag_type(name, setting), None) for name, setting in Settings.model_fields.items()]
    namespace = {"__post_init__": run, "__doc__": command.__doc__}
    return make_dataclass(command.__name__, fields, namespace=namespace, kw_only=True)


def _flag_type(name: str, setting: FieldInfo) -> Any:
    """Return the type of a flag, the help included: text that `Settings` parses, or None where the flag is absent."""
    default = "" if setting.default in (None, "") else f" (default {setting.default})"
    option = typer.Option(_flag(name), help=f"{setting.description}{default}", show_default=False)
    if setting.annotation is bool:
        return Annotated[bool | None, option]
    return Annotated[str | None, option]


def _read_settings() -> Settings:
    try:
        settings = Settings()
        # a key file that cannot be read is a wrong setting too
        settings.configured_key()
    except ValidationError as error:
        for fault in error.errors():
            name = str(fault["loc"][0]) if fault["loc"] else ""
            typer.echo(f"fitserve: {_variable(name)} / {_flag(name)}: {fault['msg']}", err=True)
        raise typer.Exit(2) from None
    except (OSError, ValueError) as error:
        typer.echo(f"fitserve: {error}", err=True)
        raise typer.Exit(2) from None
    return settings


def _variable(name: str) -> str:
    return f"FITSERVE_{name.upper()}"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
