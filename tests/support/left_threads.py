"""Run the ``main`` of an example, then say which threads of gloo are left.

    torchrun ... tests/support/left_threads.py examples distributed fsdp

They would live until the interpreter has shut down, and may abort that.
"""

import importlib
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    folder, name, *sys.argv[1:] = sys.argv[1:]
    sys.path.insert(0, folder)
    importlib.import_module(name).main()
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    left = [name for name in names if "gloo" in name]
    # At once: the processes share their output, and parts of lines would mix.
    sys.stdout.flush()
    os.write(1, f"left: {left}\n".encode())
