"""What some tests need and not every machine has."""

from __future__ import annotations

import shutil

import pytest

from cni.ctl.runtime import PLUGIN_DIRECTORIES

needs_reference_plugins = pytest.mark.skipif(
    not all(shutil.which(name, path=":".join(PLUGIN_DIRECTORIES)) for name in ("macvlan", "host-local")),
    reason="the reference plugins are not installed",
)
