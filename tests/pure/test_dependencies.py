"""What the module leans on in other people's code, beyond what that code promises."""

import concurrent.futures
import importlib
import inspect
import operator
import threading

import pytest
from filelock import FileLock

# Module and name of what is not promised, and the arguments that it must take.
THINGS = """
llm                   Response._process_chunk        chunk
llm                   KeyModel._validate_attachments attachments
llm                   KeyModel.get_key               explicit_key
llm                   AsyncResponse.add_tool_call    tool_call
llm.logs              LogStore.create_thread         name tip forked_from id
llm.logs              LogStore.log                   response thread_id
curl_cffi             AsyncCurl.remove_handle        curl
curl_cffi.requests    AsyncSession.release_curl      curl
jsonschema.exceptions best_match                     errors
"""


@pytest.mark.parametrize("thing", THINGS.strip().splitlines())
def test_thing_is_there(thing):
    module, name, *arguments = thing.split()
    found = operator.attrgetter(name)(importlib.import_module(module))
    assert set(arguments) <= set(inspect.signature(found).parameters)


def test_lock_may_be_unlinked_while_it_is_held(tmp_path):
    """Whoever waits for it gets the file that is there, not the one that is gone."""
    path, inside = tmp_path / "lock", threading.Lock()

    def take(_: int) -> None:
        with FileLock(path, poll_interval=0.001):
            assert inside.acquire(blocking=False)
            inside.release()
            path.unlink()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(take, range(200), timeout=60))
