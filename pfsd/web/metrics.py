"""/metrics for Prometheus: the daemon's numbers, read when they are asked for. Needs prometheus_client.

Nothing is counted here and nothing walks through files, so that a scrape costs the same with one file and a million.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

import pfsd
from pfsd.calls import Service
from pfsd.web.status import checks


class Metrics:
    """What one daemon exports, in a registry of its own."""

    def __init__(self, service: Service) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Daemon(service))
        ProcessCollector(registry=self._registry)

    def as_text(self) -> tuple[bytes, str]:
        """All of it in Prometheus' text format, and the name of that for HTTP."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST


class _Daemon(Collector):
    def __init__(self, service: Service) -> None:
        self._service = service

    def describe(self) -> list[Metric]:
        return []  # or it would be asked for its metrics when it is registered

    def collect(self) -> Iterator[Metric]:
        yield from self._state()
        yield from self._traffic()
        yield from self._stored()
        yield from self._resources()

    def _state(self) -> Iterator[Metric]:
        yield _gauge("build_info", "The version that runs; always 1.", 1, version=pfsd.__version__)
        ready = GaugeMetricFamily("pfsd_ready", "What a usable daemon needs, and whether it is so.", labels=["check"])
        for name, holds in checks(self._service).items():
            ready.add_metric([name], holds)
        yield ready

    def _traffic(self) -> Iterator[Metric]:
        activity = self._service.activity
        content = _counters("content_bytes", "Content moved for clients, before or after compression.", "direction")
        content.add_metric(["in"], activity.bytes_in)
        content.add_metric(["out"], activity.bytes_out)
        yield content
        commands = CounterMetricFamily(
            "pfsd_commands", "Commands that ended, by outcome: ok or an error word.", labels=["verb", "outcome"]
        )
        for (verb, outcome), count in activity.ended.items():
            commands.add_metric([verb, outcome], count)
        yield commands
        yield _gauge("commands_running", "Commands at work.", len(self._service.running))
        yield _gauge("clients", "Clients connected.", len(self._service.sessions))
        yield _gauge("clients_limit", "Most clients at once (max_clients).", self._service.max_clients)

    def _stored(self) -> Iterator[Metric]:
        registry, scrubber = self._service.engine.registry, self._service.scrubber
        reclaimer = self._service.reclaimer
        yield _gauge("files", "Files stored.", registry.files_ready)
        yield _gauge("parts", "Parts of files stored.", registry.parts_ready)
        yield _gauge("content_stored_bytes", "Content of the files stored, before compression.", registry.size)
        yield _gauge("stored_bytes", "What the files take in the store, after compression.", registry.stored)
        yield _gauge("waste_bytes", "What deleted files still take in shared packs.", reclaimer.waste)
        yield _counter("reclaimed_bytes", "What was given back by copying packs.", reclaimer.freed)
        yield _gauge("damaged_files", "Files with parts known to be bad.", registry.files_damaged)
        yield _gauge("damaged_parts", "Parts known to be bad.", registry.known_bad)
        yield _gauge("oldest_check_age_seconds", "For how long one part has not been checked.", scrubber.oldest)
        yield _gauge("check_interval_seconds", "Within what all parts are checked (0: never).", scrubber.every)
        yield _counter("checked_parts", "Parts read and checked in the background.", scrubber.parts)

    def _resources(self) -> Iterator[Metric]:
        engine, free = self._service.engine, self._service.free()
        memory = GaugeMetricFamily("pfsd_memory_bytes", "File data in flight.", labels=["kind"])
        for kind, size in (("limit", engine.budget.limit), ("used", engine.budget.used), ("peak", engine.budget.peak)):
            memory.add_metric([kind], size)
        yield memory
        slots = engine.workers.slots()
        workers = GaugeMetricFamily("pfsd_workers", "I/O processes, by what they do.", labels=["state"])
        for state in ("idle", "busy", "down"):
            workers.add_metric([state], sum(slot.state == state for slot in slots))
        yield workers
        yield _counter("worker_tasks", "Tasks that I/O processes had.", sum(slot.done for slot in slots))
        yield _counter("worker_restarts", "I/O processes that died or hung and were replaced.", engine.workers.replaced)
        if free is not None:
            yield _gauge("disk_free_bytes", "Room on the disk of the store.", free)
        committer = engine.committer
        yield _gauge("journal_bytes", "Size of the journal.", committer.journal_size)
        yield _counter("journal_records", "Records written to the journal.", committer.records)
        times = committer.times
        buckets = zip([*map(str, times.bounds), "+Inf"], accumulate(times.counts), strict=True)
        yield HistogramMetricFamily(
            "pfsd_commit_seconds",
            "How long writes to the journal took, with their sync; each commits what has come meanwhile.",
            buckets=list(buckets),
            sum_value=times.sum,
        )


def _gauge(name: str, text: str, value: float, **labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"pfsd_{name}", text, labels=list(labels))
    family.add_metric(list(labels.values()), value)
    return family


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"pfsd_{name}", text, value=value)


def _counters(name: str, text: str, label: str) -> CounterMetricFamily:
    return CounterMetricFamily(f"pfsd_{name}", text, labels=[label])
