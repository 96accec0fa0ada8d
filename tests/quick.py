"""The plugin of `make test-quick`: it leaves out the tests that need a service, another process, Keras or a long time.

No list of quick tests has to be kept, because a new test falls into its group by itself:

- the folders of `SERVICES` are not read;
- tests that use a service or a database server, property tests, and tests marked as `slow` are deselected before the run;
- a test that starts a process or imports Keras is skipped when it does so;
- a test that takes more than 10 seconds (`--timeout` in the Makefile) fails: mark it as `slow`. So does a test that hides a
  process in a thread or a task, where the skip is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path

import pytest

#: nearly every test of these rooms needs a service, or starts processes
SERVICES = {"api", "cli", "clients", "ingest", "scenarios", "server"}
FIXTURES = {"service", "start", "limited", "locked", "postgres"}
LIBRARIES = {"keras", "tensorflow", "torch", "jax"}
#: source: https://docs.python.org/3/library/audit_events.html
PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Plugin())


class Plugin:
    """Watches a run from its collection to its end."""

    def __init__(self) -> None:
        self._is_running = False
        sys.addaudithook(self._audit)

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        is_below_tests = collection_path.parent == Path(__file__).parent
        return True if is_below_tests and collection_path.name in SERVICES else None

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(
        self, collector: pytest.Collector
    ) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        if report.skipped:
            # pytest leaves a part of the module in `sys.modules`, where another test module would find it
            for name, module in list(sys.modules.items()):
                if getattr(module, "__file__", None) == str(collector.path):
                    del sys.modules[name]
        return report

    # last, because the plugin of Hypothesis adds its marker here
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        slow = [item for item in items if isinstance(item, pytest.Function) and _is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]

    def pytest_runtestloop(self) -> None:
        self._is_running = True

    def _audit(self, event: str, arguments: tuple[object, ...]) -> None:
        if event == "import" and arguments[0] in LIBRARIES:
            pytest.skip(f"imports {arguments[0]}", allow_module_level=True)
        if event in PROCESSES and self._is_running:
            pytest.skip("starts a process")


def _is_slow(item: pytest.Function) -> bool:
    is_marked = any(item.get_closest_marker(name) is not None for name in ("slow", "hypothesis"))
    has_properties = "given" in item.function.__code__.co_names
    return is_marked or has_properties or bool(FIXTURES & set(item.fixturenames))
