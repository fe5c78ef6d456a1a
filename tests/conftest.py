"""What all tests share: how hypothesis behaves."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("dev", deadline=None)  # a busy machine is no reason to fail
settings.register_profile("ci", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")
