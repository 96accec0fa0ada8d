"""The composition root: every room on its database and its store, from the settings."""

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
from app.records.rooms import Rooms
from app.records.workers import Workers
from app.serving.admission import Lane, Lanes
from app.serving.version_cache import VersionCache
from app.settings import Settings
from app.storage.blobs import LocalBlobs
from app.storage.database import Database
from app.storage.job_queue import JobQueue
from app.system.machine import machine_bytes

#: the label of staging folders that requests work in
REQUEST = "request"


@dataclass
class Services:
    """What the API's routes are given."""

    settings: Settings
    rooms: Rooms
    parser: ParserProcess
    #: another child, so that a prediction does not wait for an upload
    prediction_parser: ParserProcess
    #: another, the intake's too: large files, each of which may take half of the memory, wait for one another
    large_file_parser: ParserProcess
    background_parser: BackgroundParser
    lanes: Lanes
    version_cache: VersionCache
    job_waiter: JobWaiter
    keys: Keys
    usage: VersionUsage = field(default_factory=VersionUsage)
    #: where several processes serve
    totals: Totals | None = None
    is_draining: bool = False
    open_streams: int = 0

    def parser_for(self, file: Path) -> ParserProcess:
        """Give the child that parses a file: large ones have one of their own."""
        return self.large_file_parser if file.stat().st_size > self.settings.max_parsed_at_once_bytes else self.parser

    def sweep(self) -> None:
        """Remove what a service that was killed left; for the one service of a data directory, before it serves."""
        for label in (REQUEST, STAGING):
            self.rooms.blobs.sweep(label)
        self.rooms.datasets.sweep(self.rooms.jobs)

    def drain(self) -> None:
        """Stop being ready, and let every stream and long poll end."""
        self.is_draining = True
        self.job_waiter.wake_all()

    def close(self) -> None:
        """End what works here, and close the database's connections."""
        for lane in self.lanes:
            lane.close()
        self.rooms.close()


def open_rooms(settings: Settings) -> Rooms:
    """Open every room; the database has been migrated by then."""
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
    """Open what the API needs."""
    rooms = open_rooms(settings)
    bounds = (settings.max_rows, settings.max_columns, settings.max_ingest_seconds, settings.max_ingest_bytes)
    large = ParserProcess(*bounds)
    return Services(
        settings=settings,
        rooms=rooms,
        parser=ParserProcess(*bounds),
        prediction_parser=ParserProcess(*bounds),
        large_file_parser=large,
        lanes=open_lanes(settings),
        background_parser=BackgroundParser(rooms.datasets, rooms.blobs, large),
        version_cache=VersionCache(
            rooms.registry, settings.serve_on, settings.max_loaded_bytes, settings.max_predict_cells
        ),
        job_waiter=JobWaiter(rooms.jobs),
        keys=Keys(rooms.database, settings.configured_key()),
    )


def open_lanes(settings: Settings) -> Lanes:
    """Make the lanes of one process."""
    at_once, seconds = settings.max_predictions or os.cpu_count() or 1, settings.predict_seconds
    others = (settings.max_waiting, settings.request_seconds)
    return Lanes(
        predictions=Lane("predictions", at_once, settings.max_waiting_predictions, seconds),
        evaluations=Lane("evaluations", settings.max_evaluations, *others),
        uploads=Lane("uploads", settings.max_uploads, *others),
        submissions=Lane("submissions", settings.max_submissions, *others),
    )


def encoded_bytes(settings: Settings) -> int:
    """Give what the encoded rows of one job may take in memory: by default half of it is for all jobs at once."""
    return settings.max_training_bytes or machine_bytes() // 2 // max(settings.workers, 1)


def job_limits(settings: Settings) -> Limits:
    """Give what a job may ask for at most."""
    return Limits(
        classes=settings.max_classes,
        features=settings.max_features,
        parameters=settings.max_parameters,
        seconds=settings.max_job_seconds,
        encoded_bytes=encoded_bytes(settings),
        memory_bytes=machine_bytes(),
    )
