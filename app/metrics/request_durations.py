"""What is answered ahead of the routes, counted among the requests of FastAPI's own telemetry. Knows no request's path.

An OpenTelemetry instrument takes as long to record one duration as a prediction takes. So these are counted here, in
a few numbers, and joined to the telemetry's figures whenever somebody reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import Histogram, HistogramDataPoint, Metric, MetricsData, NumberDataPoint, Sum

DURATION, ACTIVE = "http.server.request.duration", "http.server.active_requests"
#: seconds (https://opentelemetry.io/docs/specs/semconv/http/http-metrics/#metric-httpserverrequestduration)
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class Series:
    """Requests that differ only in how long they took; written by the event loop's thread alone."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = attributes
        self.active = 0
        self.seconds = 0.0
        self.counts = [0] * (len(BOUNDS) + 1)
        self.least, self.most = float("inf"), 0.0

    def add(self, seconds: float) -> None:
        """Count an answer with status 200."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds
        self.least, self.most = min(self.least, seconds), max(self.most, seconds)


class Tally:
    """The counts of answers with status 200 by HTTP/1.1, by route."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}

    def series(self, method: str, route: str) -> Series:
        """Give the series of a route, as the telemetry calls it."""
        found = self._series.get((method, route))
        if found is None:
            attributes = {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": 200,
                "url.scheme": "http",
                "network.protocol.version": "1.1",
            }
            found = self._series[method, route] = Series(attributes)
        return found

    def join(self, metrics: Sequence[Metric]) -> list[Metric]:
        """Give the telemetry's metrics with these counts in them; one that it has not yet gets none."""
        return [self._joined(metric) for metric in metrics]

    def _joined(self, metric: Metric) -> Metric:
        if metric.name == DURATION and isinstance(metric.data, Histogram):
            durations = list(metric.data.data_points)
            for series in self._series.values():
                _add_durations(durations, series)
            return replace(metric, data=replace(metric.data, data_points=durations))
        if metric.name == ACTIVE and isinstance(metric.data, Sum):
            numbers = list(metric.data.data_points)
            for series in self._series.values():
                _add_active(numbers, series)
            return replace(metric, data=replace(metric.data, data_points=numbers))
        return metric


def _add_durations(points: list[HistogramDataPoint], series: Series) -> None:
    counts = list(series.counts)
    if not any(counts):
        return
    i, found = _point(points, series.attributes)
    if found is None:
        # the time is that of all points of one reading
        start, now = points[0].start_time_unix_nano, points[0].time_unix_nano
        least, most = series.least, series.most
        points.append(
            HistogramDataPoint(series.attributes, start, now, sum(counts), series.seconds, counts, BOUNDS, least, most)
        )
        return
    assert tuple(found.explicit_bounds) == BOUNDS
    points[i] = replace(
        found,
        count=found.count + sum(counts),
        sum=found.sum + series.seconds,
        bucket_counts=[a + b for a, b in zip(found.bucket_counts, counts, strict=True)],
        min=min(found.min, series.least),
        max=max(found.max, series.most),
    )


def _add_active(points: list[NumberDataPoint], series: Series) -> None:
    attributes = {name: series.attributes[name] for name in ("url.scheme", "http.request.method")}
    i, found = _point(points, attributes)
    if found is not None:
        points[i] = replace(found, value=found.value + series.active)
    elif series.active:
        points.append(replace(points[0], attributes=attributes, value=series.active))


def _point(points: Sequence[Any], attributes: dict[str, Any]) -> tuple[int, Any]:
    return next(((i, each) for i, each in enumerate(points) if dict(each.attributes or {}) == attributes), (0, None))


class TallyReader(PrometheusMetricReader):
    """The reader behind `/metrics`, with a tally joined in."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        super().__init__()

    def _receive_metrics(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> None:
        joined = [
            replace(
                resource,
                scope_metrics=[
                    replace(scope, metrics=self._tally.join(scope.metrics)) for scope in resource.scope_metrics
                ],
            )
            for resource in (metrics_data.resource_metrics if metrics_data else ())
        ]
        super()._receive_metrics(replace(metrics_data, resource_metrics=joined), timeout_millis, **kwargs)
