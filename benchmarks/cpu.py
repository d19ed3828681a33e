"""CPU seconds, user and system together: of ourselves, and of the servers beside us."""

import resource

import psutil
from elasticsearch import Elasticsearch


def cpu_seconds() -> float:
    """Of this process, and of the processes below it that have ended and been waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def process_seconds(pid: int) -> float:
    """Of a process that runs."""
    times = psutil.Process(pid).cpu_times()
    used: float = times.user + times.system
    return used


def elasticsearch_seconds(search: Elasticsearch) -> float:
    """Of the Elasticsearch that a client talks to, since its start."""
    nodes = search.nodes.stats(metric="process")["nodes"].values()
    return sum(node["process"]["cpu"]["total_in_millis"] for node in nodes) / 1000


def family_seconds(pid: int) -> float:
    """Of a process that runs, and of those below it that run."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process_seconds(process.pid) for process in family)
