"""Settings: variables, flags, what is refused and how, and when a key is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import Settings
from tests.service import ROOT

KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have settings of their own."""
    for name in os.environ:
        if name.startswith("FITSERVE_"):
            monkeypatch.delenv(name)


def fitserve(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "250", **{f"FITSERVE_{k.upper()}": v for k, v in variables.items()}}
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_defaults_are_the_documented_ones() -> None:
    settings = Settings()

    expected = {
        "host": "127.0.0.1",
        "port": 8000,
        "data_dir": Path("models"),
        "max_upload_bytes": 1024**3,
        "max_predict_bytes": 8 * 1024**2,
        "max_rows": 10_000_000,
        "max_columns": 10_000,
        "max_classes": 1_000,
        "max_job_seconds": 3600,
    }
    assert expected == {name: getattr(settings, name) for name in expected}
    assert f"sqlite:///{Path('models').absolute()}/fitserve.db" == settings.resolved_database_url
    assert Path("models") == settings.resolved_store


def test_every_setting_is_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "host": "0.0.0.0",
        "port": 1234,
        "data_dir": Path("/data"),
        "api_key": KEY,
        "insecure_no_auth": True,
        "serve_on": "cpu",
        "max_rows": 7,
        "header_seconds": 1.5,
    }
    for name, value in given.items():
        monkeypatch.setenv(f"FITSERVE_{name.upper()}", str(value))

    settings = Settings()

    assert given == {name: getattr(settings, name) for name in given}


@pytest.mark.parametrize("name", list(Settings.model_fields))
def test_an_empty_variable_is_as_good_as_none(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"FITSERVE_{name.upper()}", "")

    assert Settings.model_fields[name].default == getattr(Settings(), name)


@pytest.mark.parametrize("command", ["serve", "work"])
def test_every_setting_is_a_flag_and_help_describes_it(command: str) -> None:
    shown = " ".join(re.sub(r"[│╭╮╰╯─]", " ", fitserve(command, "--help").stdout).split())

    assert [] == [n for n in Settings.model_fields if f"--{n.replace('_', '-')} " not in shown]
    assert [] == [n for n, field in Settings.model_fields.items() if str(field.description) not in shown]
    assert "Port to listen on; 0 takes a free one. (default 8000)" in shown


def test_a_flag_wins_over_its_variable(tmp_path: Path) -> None:
    done = fitserve("migrate", "--data-dir", str(tmp_path / "flag"), data_dir=str(tmp_path / "variable"))

    assert (0, "") == (done.returncode, done.stdout)
    assert ["flag"] == [each.name for each in tmp_path.iterdir()]
    assert 0o700 == (tmp_path / "flag").stat().st_mode & 0o777
    assert (tmp_path / "flag" / "fitserve.db").exists()


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--port", "65536", "less than or equal to 65535"),
        ("--port", "http", "valid integer"),
        ("--workers", "-1", "greater than or equal to 0"),
        ("--worker-name", "a/b", "pattern"),
        ("--serve-on", "tpu", "'auto', 'cpu' or 'gpu'"),
        ("--max-rows", "0", "greater than or equal to 1"),
        ("--processes", "65", "less than or equal to 64"),
        ("--drain-seconds", "inf", "less than or equal to 20"),
        ("--database-url", "mysql://u:SECRET@h/db", "expected sqlite:///PATH or postgresql://…, got scheme 'mysql'"),
        ("--store-url", "s3://bucket", "expected file:///PATH or nothing, got scheme 's3'"),
    ],
)
def test_a_wrong_value_is_refused_by_name(flag: str, value: str, expected: str) -> None:
    done = fitserve("migrate", flag, value)

    variable = "FITSERVE_" + flag.removeprefix("--").replace("-", "_").upper()
    assert 2 == done.returncode
    assert done.stderr.startswith(f"fitserve: {variable} / {flag}: ")
    assert expected in done.stderr
    assert "SECRET" not in done.stderr
    assert 1 == done.stderr.count("\n")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file"),
        (
            b"too-short-SECRET"[4:],
            "FITSERVE_API_KEY_FILE: expected at least 16 letters, digits and signs of ASCII, got 12",
        ),
        (b"\n", "got 0 characters"),
        ("é".encode() * 16, "got 16 characters"),
        (b"two words of SECRET", "got 19 characters"),
        (b"\xff" * 32, "FITSERVE_API_KEY_FILE: expected text in UTF-8"),
    ],
    ids=["absent", "short", "empty", "not ASCII", "words", "no text"],
)
def test_a_key_file_without_a_key_is_refused(content: bytes | None, expected: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)

    done = fitserve("migrate", "--api-key-file", str(tmp_path / "key"), data_dir=str(tmp_path / "data"))

    assert 2 == done.returncode
    assert expected in done.stderr
    assert "SECRET" not in done.stderr
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("key", "expected"), [("SECRET", "at least 16 characters"), ("SECRET with some spaces", "pattern")]
)
def test_what_is_no_key_is_refused_and_not_repeated(key: str, expected: str) -> None:
    done = fitserve("migrate", api_key=key)

    assert 2 == done.returncode
    assert "FITSERVE_API_KEY / --api-key" in done.stderr
    assert expected in done.stderr
    assert "SECRET" not in done.stderr


def test_the_key_of_a_file_is_taken_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")

    assert KEY == Settings(api_key_file=tmp_path / "key").configured_key()


def test_no_secret_is_shown_with_the_settings() -> None:
    shown = repr(Settings(api_key="SECRET0123456789", database_url="postgresql://user:SECRET@host/db"))

    assert "SECRET" not in shown


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, False),
        ({"host": "localhost"}, False),
        ({"host": "127.9.9.9"}, False),
        ({"host": "::1"}, False),
        ({"api_key": KEY}, True),
        ({"api_key_file": Path("/a/file")}, True),
        ({"insecure_no_auth": True, "api_key": KEY, "host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "192.168.0.1"}, True),
        ({"host": "example.org"}, True),
        ({"host": "127.0.0.1.example.org"}, True),
        ({"host": ""}, True),
        ({"host": "0.0.0.0", "insecure_no_auth": True}, False),
    ],
)
def test_a_key_is_needed_off_loopback_or_where_one_is_configured(settings: dict[str, Any], expected: bool) -> None:
    assert expected == Settings(**settings).needs_key


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:////var/a.db", "sqlite:////var/a.db"),
        ("postgresql://u:p@h:5432/db?sslmode=require", "postgresql+psycopg://u:p@h:5432/db?sslmode=require"),
        ("postgresql+psycopg://h/db", "postgresql+psycopg://h/db"),
    ],
)
def test_a_database_is_named_by_its_address(given: str, expected: str) -> None:
    assert expected == Settings(database_url=given).resolved_database_url


@pytest.mark.parametrize(
    "given", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "postgresql://", "a.db", "oracle://h"]
)
def test_what_is_no_database_for_several_processes_is_refused(given: str) -> None:
    with pytest.raises(ValidationError, match="expected sqlite:///PATH"):
        Settings(database_url=given)


def test_the_store_may_be_another_folder() -> None:
    assert Path("/my data/blobs") == Settings(store_url="file:///my%20data/blobs").resolved_store


@pytest.mark.parametrize("given", ["file://", "file://relative", "s3://bucket", "/plain/path"])
def test_a_store_is_a_local_folder(given: str) -> None:
    with pytest.raises(ValidationError, match="expected file:///PATH"):
        Settings(store_url=given)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]
