"""What a decoder writes past Python is swallowed, what Parivox says meanwhile is not."""

from __future__ import annotations

import os
import sys
import threading

from parivox.quiet import stderr_closed, stderr_open


def test_what_is_written_past_python_is_swallowed_and_the_end_is_as_it_was(capfd):
    with stderr_closed(), stderr_closed():
        os.write(2, b"a remark")
    os.write(2, b"an error")
    assert capfd.readouterr().err == "an error"


def test_a_message_waits_until_another_thread_has_done_with_silence(capfd):
    closed, told = threading.Event(), threading.Event()

    def decodes() -> None:
        with stderr_closed():
            closed.set()
            told.wait(0.2)  # it is not told: the message below has to wait
            os.write(2, b"a remark")

    thread = threading.Thread(target=decodes)
    thread.start()
    closed.wait()
    with stderr_open():
        print("a message", file=sys.stderr, flush=True)
    told.set()
    thread.join()
    assert capfd.readouterr().err == "a message\n"
