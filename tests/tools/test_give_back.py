"""What a thread has freed is given back while the thread waits."""

import platform
import sys

import pytest
from helpers.processes import run_python

from lightning_mpq.tools.give_back import give_back

CODE = """
import threading
import torch
from pathlib import Path
from lightning_mpq.tools.give_back import give_back

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

def work():
    kept = [torch.ones(20_000) for _ in range(500)]  # 40 MB in pieces below what is mapped by itself
    del kept[:-1]
    done.set()
    over.wait()

done, over = threading.Event(), threading.Event()
thread = threading.Thread(target=work)
before = held()
thread.start()
done.wait()
freed = held()
give_back()
print(freed - before, held() - before)
over.set()
"""


def test_it_does_no_harm_anywhere():
    give_back()


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="Linux with glibc says it")
def test_what_a_waiting_thread_has_freed_is_given_back():
    kept, given_back = map(int, run_python(CODE).split())
    assert kept > 30_000
    assert given_back < 10_000
