"""Where measurements are taken: what the device and the software call themselves."""

from __future__ import annotations

import datetime
import os
import platform
import re
import uuid
from pathlib import Path
from typing import Literal

from calibrate.store import Environment
from costmodel.errors import InputError

#: Bytes of the last-level cache where the system does not say.
CACHE = 32 * 2**20

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"": 1, "K": 2**10, "M": 2**20}


def environment(device: Literal["cpu", "cuda"], timer: str, command: str) -> Environment:
    """Of a session that starts now.

    Raises:
        InputError: where torch sees no such device.
    """
    import torch

    if device == "cuda":
        if not torch.cuda.is_available():
            raise InputError("--on", device, "torch sees no CUDA device", "measure --on cpu")
        found = torch.cuda.get_device_properties(0)
        name, memory, cache = found.name, found.total_memory, found.L2_cache_size
        clock, driver = 1e3 * getattr(found, "clock_rate", 0), f"CUDA {torch.version.cuda}"
    else:
        name, memory, cache = _cpu_name(), _memory_bytes(), _cache_bytes()
        clock, driver = _clock_hz(), torch.backends.cpu.get_cpu_capability()
    return Environment(
        id=uuid.uuid4().hex[:12],
        device=name,
        kind=device,
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        cache_bytes=cache,
        clock_hz=clock,
        driver=driver,
        torch=str(torch.__version__),
        python=platform.python_version(),
        system=platform.platform(),
        timer=timer,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
    )


def _cpu_field(name: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""
    found = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else ""


def _cpu_name() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _clock_hz() -> float:
    return 1e6 * float(_cpu_field("cpu MHz") or 0)


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _cache_bytes() -> int:
    """Of the largest cache of the first processor."""
    found = [CACHE] if not _CACHES.is_dir() else []
    for size in _CACHES.glob("index*/size"):
        match = re.fullmatch(r"(\d+)([KM]?)", size.read_text().strip())
        if match:
            found.append(int(match[1]) * _UNITS[match[2]])
    return max(found, default=CACHE)
