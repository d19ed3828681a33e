"""CPU seconds, user and system together: of ourselves, and of the servers beside us."""

import resource

import psutil


def cpu_seconds() -> float:
    """Of this process, and of the processes below it that have ended and been waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def server_cpu_seconds() -> dict[str, float]:
    """Of the processes below this one that run: those of Elasticsearch, and those of the image server."""
    sums = {"Elasticsearch": 0.0, "image server": 0.0}
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
            command = " ".join(process.cmdline())
        except psutil.Error:
            continue
        if "photo_server" in command:
            sums["image server"] += times.user + times.system
        elif "elasticsearch" in command:
            sums["Elasticsearch"] += times.user + times.system
    return sums
