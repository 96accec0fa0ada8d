"""The composition root: the rooms and the services of one process, from the settings. Nothing else makes them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from app.ingest.background import STAGING, BackgroundParser
from app.ingest.parser_process import ParserProcess
from app.jobs.waiting import JobWaiter
from app.learning.training.resolve_spec import Limits
from app.metrics.several_processes import Totals
from app.metrics.version_usage import VersionUsage
from app.records.aliases import Aliases
from app.records.checkpoints import Checkpoints
from app.records.claims import Claims
from app.records.datasets import Datasets
from app.records.job_sweep import JobSweep
from app.records.jobs import Jobs
from app.records.keys import Keys
from app.records.registry import Registry
from app.records.retention import Policy
from app.records.rooms import Rooms
from app.records.workers import Workers
from app.serving.admission import Lane, Lanes
from app.serving.version_cache import VersionCache
from app.settings import Settings
from app.storage.blobs import LocalBlobs
from app.storage.database import Database
from app.storage.job_queue import JobQueue
from app.system.machine import machine_bytes

#: the label of the staging folders of requests
REQUEST = "request"


@dataclass
class Services:
    """What one serving process works with.

    Args:
        parser: parses small uploads and request bodies.
        prediction_parser: parses bodies of predictions, which so never wait for an upload.
        large_file_parser: parses large files one after another, because each may take half of the memory.
        background_parser: parses large uploads after they were answered, by `large_file_parser`.
        totals: joins the metrics of several serving processes; None where there is one.
        is_draining: whether the process is about to stop.
        open_streams: event streams that are open now.
    """

    settings: Settings
    rooms: Rooms
    parser: ParserProcess
    prediction_parser: ParserProcess
    large_file_parser: ParserProcess
    background_parser: BackgroundParser
    lanes: Lanes
    version_cache: VersionCache
    job_waiter: JobWaiter
    keys: Keys
    usage: VersionUsage = field(default_factory=VersionUsage)
    totals: Totals | None = None
    is_draining: bool = False
    open_streams: int = 0

    def parser_for(self, file: Path) -> ParserProcess:
        """Return the parser process for a file: large files have one of their own."""
        return self.large_file_parser if file.stat().st_size > self.settings.max_parsed_at_once_bytes else self.parser

    def sweep(self) -> None:
        """Delete what a service that was killed left. Only the one service of a data directory may, before it serves."""
        for label in (REQUEST, STAGING):
            self.rooms.blobs.sweep(label)
        self.rooms.datasets.sweep(self.rooms.jobs)

    def drain(self) -> None:
        """Stop being ready, and let every stream and long poll end."""
        self.is_draining = True
        self.job_waiter.wake_all()

    def close(self) -> None:
        """End the threads of the lanes, and close the connections of the database and the queue."""
        for lane in self.lanes:
            lane.close()
        self.rooms.close()


def open_rooms(settings: Settings) -> Rooms:
    """Open every room on one database and one store. The database has to be migrated."""
    url = settings.resolved_database_url
    database, blobs, queue = Database(url), LocalBlobs(settings.resolved_store), JobQueue(url)
    return Rooms(
        database=database,
        blobs=blobs,
        queue=queue,
        datasets=Datasets(database, blobs),
        jobs=Jobs(database, queue, settings.max_queued_jobs),
        claims=Claims(database),
        job_sweep=JobSweep(database, queue),
        registry=Registry(database, blobs),
        aliases=Aliases(database),
        workers=Workers(database),
        checkpoints=Checkpoints(blobs),
    )


def open_services(settings: Settings) -> Services:
    """Open what one serving process works with. The database has to be migrated."""
    rooms = open_rooms(settings)
    limits = (settings.max_rows, settings.max_columns, settings.max_ingest_seconds, settings.max_ingest_bytes)
    large_file_parser = ParserProcess(*limits)
    return Services(
        settings=settings,
        rooms=rooms,
        parser=ParserProcess(*limits),
        prediction_parser=ParserProcess(*limits),
        large_file_parser=large_file_parser,
        background_parser=BackgroundParser(rooms.datasets, rooms.blobs, large_file_parser),
        lanes=_open_lanes(settings),
        version_cache=VersionCache(
            rooms.registry, settings.serve_on, settings.max_loaded_bytes, settings.max_predict_cells
        ),
        job_waiter=JobWaiter(rooms.jobs),
        keys=Keys(rooms.database, settings.configured_key()),
    )


def _open_lanes(settings: Settings) -> Lanes:
    at_once, seconds = settings.max_predictions or os.cpu_count() or 1, settings.predict_seconds
    others = (settings.max_waiting, settings.request_seconds)
    return Lanes(
        predictions=Lane("predictions", at_once, settings.max_waiting_predictions, seconds),
        evaluations=Lane("evaluations", settings.max_evaluations, *others),
        uploads=Lane("uploads", settings.max_uploads, *others),
        submissions=Lane("submissions", settings.max_submissions, *others),
    )


def encoded_bytes(settings: Settings) -> int:
    """Return the memory for the encoded rows of one job; by default, all jobs at once get half of the machine's."""
    return settings.max_training_bytes or machine_bytes() // 2 // max(settings.workers, 1)


def job_limits(settings: Settings) -> Limits:
    """Return the most that a job may ask for."""
    return Limits(
        classes=settings.max_classes,
        features=settings.max_features,
        parameters=settings.max_parameters,
        seconds=settings.max_job_seconds,
        encoded_bytes=encoded_bytes(settings),
        memory_bytes=machine_bytes(),
    )


def retention_policy(settings: Settings) -> Policy:
    """Return how long records are kept; 0 in the settings keeps them for ever."""
    return Policy(
        datasets=settings.keep_unused_datasets_days or None,
        events=settings.keep_events_days or None,
        jobs=settings.keep_jobs_days or None,
        engine=settings.keep_engine_days or None,
        checkpoints=settings.keep_checkpoints_days or None,
    )
