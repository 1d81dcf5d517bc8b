"""Hold the lock of a folder for a minute: ``python hold_folder.py FOLDER``.

A forked child, whose id is printed once the folder is locked, goes on when this process is killed, as the worker of a
data loader may.
"""

import os
import sys
import time

from hf_lottery.hf.trainers.run_lock import locked_folder

if __name__ == "__main__":
    with locked_folder(sys.argv[1]):
        child = os.fork()
        if child:
            print(child, flush=True)
        time.sleep(60)
        if not child:
            os._exit(0)
