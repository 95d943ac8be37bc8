"""What may stand where a file is expected, in an archive that somebody else made for instance."""

import os


def make(kind, path):
    """Put a pipe, a device, a folder, a giant, a link in a loop, or nothing in a place, and return it."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "giant":
        path.touch()
        os.truncate(path, 200 * 2**30)
    elif kind == "loop":
        path.symlink_to(path)
    return path
