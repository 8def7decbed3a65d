"""The pure parts: no network, no server, no process."""

from hypothesis import settings

# The same examples every time, and as long as they take: no test depends on chance or time.
settings.register_profile("pure", derandomize=True, deadline=None, database=None, max_examples=100)
settings.load_profile("pure")
