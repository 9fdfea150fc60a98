"""What a calculation has used: wall time, CPU time and peak memory of this process."""

from __future__ import annotations

import sys
import time
from pathlib import Path


class Usage:
    """Counts from its creation; the peak of memory is reset there where the system allows it (Linux)."""

    def __init__(self):
        self.start, self.cpu = time.perf_counter(), time.process_time()
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass

    def so_far(self) -> dict[str, float]:
        """Seconds, CPU seconds and peak memory (GB) of the process; `device_GB` where an accelerator tells."""
        used = {
            "seconds": round(time.perf_counter() - self.start, 2), "cpu_seconds": round(time.process_time() - self.cpu, 2),
            "peak_memory_GB": round(_peak_bytes() / 1e9, 3),
        }  # fmt: skip
        device = _device_bytes()
        return used | ({"device_GB": round(device / 1e9, 3)} if device else {})


def _peak_bytes() -> float:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * float(line.split()[1])
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def _device_bytes() -> float:
    import jax

    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    return float((stats or {}).get("peak_bytes_in_use", 0))
