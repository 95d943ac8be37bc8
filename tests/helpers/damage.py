"""Files that were damaged after they were written: a bit of the data flipped, or all data zeros."""

from pathlib import Path


def flip_a_bit(path: Path, place: int) -> None:
    """Flip one bit of the numbers in a safetensors file; ``place`` counts the bits from their beginning."""
    content = bytearray(path.read_bytes())
    byte, bit = divmod(place, 8)
    content[8 + int.from_bytes(content[:8], "little") + byte] ^= 1 << bit
    path.write_bytes(content)


def zero_the_data(path: Path) -> None:
    """Let the numbers in a safetensors file be zeros."""
    content = path.read_bytes()
    head = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:head] + bytes(len(content) - head))
