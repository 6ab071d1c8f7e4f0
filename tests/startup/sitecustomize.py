"""What pytest's processes and all that they start have compiled they find again, also each other's.

Python runs this at its start, as this folder is in PYTHONPATH. JAX's cache lacks two things: that
an entry is written at once, for processes that read it meanwhile or are killed, and that processes
other than the first of several write entries. The processes of an index share a folder.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import sys


def _at_once(lru_cache):
    """An entry is there as a whole or, as on a full disk, not at all."""

    def put(self, key, value):
        path = self.path / f"{key}{lru_cache._CACHE_SUFFIX}"
        part = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            part.write_bytes(value)
            part.replace(path)

    lru_cache.LRUCache.put = put


def _from_all(compiler):
    """Every process writes."""

    def write(key, seconds, module, backend, executable, host_callbacks):
        if not host_callbacks:
            compiler.compilation_cache.put_executable_and_time(
                key, module, executable, backend, int(seconds)
            )

    compiler._cache_write = write


CHANGES = {"jax._src.lru_cache": _at_once, "jax._src.compiler": _from_all}


class _Changing(importlib.abc.MetaPathFinder):
    """Changes modules when they are imported, lest a process that needs no JAX imports it."""

    def find_spec(self, name, path, target=None):
        if name not in CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module

        def changed(module):
            run(module)
            CHANGES[name](module)

        spec.loader.exec_module = changed
        return spec


if folder := os.environ.get("TESTS_COMPILED"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(
        folder, os.environ.get("JAX_PROCESS_ID", "alone")
    )
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    sys.meta_path.insert(0, _Changing())
