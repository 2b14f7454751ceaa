"""The removal of a model's weights from disk."""

from __future__ import annotations

import asyncio

from locallab.errors import NotRemovable
from locallab.pool.pool import Pool


async def remove(pool: Pool, model_id: str) -> int:
    """Unload the model of this id or alias, once its requests have ended, with those that share its files; then remove them,
    and return the bytes freed. It stays in the registry. Raises UnknownModel, NotRemovable, NotOnDisk."""
    spec, store = pool.registry.get(model_id), pool.store
    await asyncio.to_thread(store.check_removal, spec)
    for each in [each for each in pool.loaded if store.folder(each.spec) == store.folder(spec)]:
        await pool.unload(each.spec.id)

    def fetching() -> None:
        raise NotRemovable(spec.id, "is being fetched: end that first")

    def removing() -> int:
        with store.lock(spec, fetching):
            return store.remove(spec)

    return await asyncio.to_thread(removing)
