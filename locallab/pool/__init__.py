"""The loaded models: loading on demand, swapping, keeping several, unloading. `plan` decides, `pool` acts."""

from locallab.pool.lease import Lease
from locallab.pool.loaded import Loaded, PoolStats
from locallab.pool.memory import Memory, MemoryUse
from locallab.pool.pool import Pool, Status

__all__ = ["Lease", "Loaded", "Memory", "MemoryUse", "Pool", "PoolStats", "Status"]
