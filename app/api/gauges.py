"""The meter of one process: the durations of requests, and gauges of lanes, jobs, event streams and loaded versions."""

from __future__ import annotations

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider

from app.errors import Unavailable
from app.metrics.request_durations import Tally, TallyReader
from app.records.job_status import JobStatus
from app.wiring import Services


def open_meter(services: Services, tally: Tally) -> MeterProvider:
    """Return the meter of this process, whose figures `/metrics` shows.

    Args:
        tally: the counts of requests that the fast path answers.
    """
    provider = MeterProvider([TallyReader(tally)])
    meter = provider.get_meter("fitserve")

    def jobs(_options: CallbackOptions) -> list[Observation]:
        try:
            counts = services.rooms.jobs.counts()
        except Unavailable:
            # while the database is unavailable, a scrape has all other metrics
            return []
        return [Observation(counts.get(status, 0), {"status": status}) for status in JobStatus]

    def streams(_options: CallbackOptions) -> list[Observation]:
        return [Observation(services.open_streams)]

    def loaded(_options: CallbackOptions) -> list[Observation]:
        return [Observation(len(services.version_cache.devices()))]

    def insecure(_options: CallbackOptions) -> list[Observation]:
        return [Observation(int(services.settings.insecure_no_auth))]

    def at_work(_options: CallbackOptions) -> list[Observation]:
        return [Observation(lane.at_work, {"lane": lane.name}) for lane in services.lanes]

    def waiting(_options: CallbackOptions) -> list[Observation]:
        return [Observation(lane.waiting, {"lane": lane.name}) for lane in services.lanes]

    def refused(_options: CallbackOptions) -> list[Observation]:
        full = [Observation(lane.refused, {"lane": lane.name, "reason": "full"}) for lane in services.lanes]
        return full + [Observation(lane.expired, {"lane": lane.name, "reason": "deadline"}) for lane in services.lanes]

    meter.create_observable_gauge("fitserve_requests_at_work", [at_work], description="Requests that hold a place.")
    meter.create_observable_gauge("fitserve_requests_waiting", [waiting], description="Requests that wait for one.")
    meter.create_observable_counter("fitserve_requests_refused", [refused], description="Requests that got none.")
    meter.create_observable_gauge("fitserve_jobs", [jobs], description="Jobs by status.")
    meter.create_observable_gauge("fitserve_event_streams", [streams], description="Open event streams.")
    meter.create_observable_gauge("fitserve_loaded_versions", [loaded], description="Versions in memory.")
    meter.create_observable_gauge("fitserve_insecure_no_auth", [insecure], description="1 where keys are switched off.")
    return provider
