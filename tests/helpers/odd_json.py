"""JSON texts with something odd in the place of each value, and one that is nested too deeply."""

import copy
import json

ODD = [None, True, -1, 2**63, 10**400, 0.5, float("inf"), "", "x" * 10_000, [], [[]], {}, {"a": {}}]
DEEP = "[" * 100_000


def oddities(body):
    """Yield copies of a JSON value in which one value each is odd, and what stands for it."""
    for place in places(body):
        for odd in ODD:
            changed = copy.deepcopy(body)
            holder = changed
            for key in place[:-1]:
                holder = holder[key]
            holder[place[-1]] = odd
            yield changed
    yield from ODD


def odd_texts(text):
    """Yield such texts, and one that is nested too deeply."""
    yield from map(json.dumps, oddities(json.loads(text)))
    yield DEEP


def places(body):
    keys = body if isinstance(body, dict) else range(len(body)) if isinstance(body, list) else ()
    for key in keys:
        yield [key]
        yield from ([key, *rest] for rest in places(body[key]))


def refusal(kind, function, *arguments):
    """Return the text of an exception of a kind that a function raises; an empty one if it raises none."""
    try:
        function(*arguments)
    except kind as error:
        return str(error)
    return ""
