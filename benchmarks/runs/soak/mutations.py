"""Files as disks, networks and strangers leave them: cut, extended, with other bytes, or with other values in them."""

from __future__ import annotations

import json
import struct
from random import Random
from typing import Any

ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**63,
    10**400,
    0.5,
    float("inf"),
    float("nan"),
    "",
    "x" * 10_000,
    "\x00",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"a": {"a": {}}},
)
"""What may stand where another value is expected."""
DEPTH = 2_000


def damaged(content: bytes, random: Random) -> bytes:
    """Return a file's content cut, extended, or with bytes changed, inserted, exchanged or repeated."""
    place = random.randrange(len(content))
    kind = random.randrange(7)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content + random.randbytes(random.randint(1, 40))
    if kind == 2:
        changed = bytearray(content)
        for _ in range(random.randint(1, 4)):
            changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
        return bytes(changed)
    if kind == 3:
        return content[:place] + random.randbytes(random.randint(1, 9)) + content[place:]
    if kind == 4:
        return content[:place] + content[place:][::-1]
    if kind == 5:
        return content[:place] + content[place // 2 :]
    return content[:place] + bytes(len(content) - place)


def forged_json(content: bytes, random: Random) -> bytes:
    """Return a JSON text with an odd value, or one that is nested deeply, somewhere in it."""
    body = json.loads(content)
    places: list[tuple[Any, Any]] = []
    _collect(body, places)
    holder, key = random.choice(places)
    mark = "\uffff"
    if isinstance(holder, dict) and random.random() < 0.2:
        holder[mark] = holder.pop(key)
        return json.dumps(body).encode()
    deep = random.random() < 0.15
    holder[key] = mark if deep else random.choice(ODD)
    text = json.dumps(body)
    return text.replace(json.dumps(mark), "[" * DEPTH + "]" * DEPTH).encode() if deep else text.encode()


def forged_header(content: bytes, random: Random) -> bytes:
    """Return a safetensors file with an odd value in its header, or in the JSON text that stands there."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    texts = header.get("__metadata__", {})
    if texts and random.random() < 0.7:
        name = random.choice(sorted(texts))
        texts[name] = forged_json(texts[name].encode(), random).decode() if texts[name][:1] in "[{" else "?"
        raw = json.dumps(header).encode()
    else:
        raw = forged_json(json.dumps(header).encode(), random)
    raw += b" " * (-len(raw) % 8)
    return struct.pack("<Q", len(raw)) + raw + content[end:]


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    """List every place in a JSON value as a container and a key."""
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        places.append((value, key))
        _collect(value[key], places)
