"""Python imports this module at its start, in a command and in its worker processes, if its folder is on PYTHONPATH.

Connections beyond this machine, and pickles of any file, are written to the file that MEDLT_WATCH names, and refused.
An audit hook (PEP 578) sees them in C code too, and stays until the process ends.
"""

import os
import sys
import traceback
from types import FrameType

HERE = {"localhost", "127.0.0.1", "::1", "", None}
BETWEEN_PROCESSES = (f"{os.sep}multiprocessing{os.sep}", f"{os.sep}concurrent{os.sep}futures{os.sep}")
TORCH = f"torch{os.sep}serialization.py"


def refuse(what: str) -> None:
    stack = [f"  {frame.f_code.co_filename}:{line}\n" for frame, line in traceback.walk_stack(None)]  # opens no file
    place = os.open(os.environ["MEDLT_WATCH"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(place, "".join([what, "\n", *stack]).encode())
    os.close(place)
    raise RuntimeError(what)


def called_from(*files: str, function: str = "") -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if any(file in code.co_filename for file in files) and (not function or code.co_name == function):
            return True
        frame = frame.f_back
    return False


def hook(event: str, args: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = args[1]
        if isinstance(address, tuple) and address[0] not in HERE:
            refuse(f"{event} {address}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and args[0] not in HERE:
        refuse(f"{event} {args[0]!r}")
    elif event == "pickle.find_class" and not called_from(*BETWEEN_PROCESSES):
        refuse(f"pickle of {args[0]}.{args[1]}")
    elif event == "open" and args[0] != os.environ["MEDLT_WATCH"] and called_from(TORCH, function="load"):
        refuse(f"torch.load of {args[0]!r}")


if "MEDLT_WATCH" in os.environ:
    sys.addaudithook(hook)
