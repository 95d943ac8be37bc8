"""What the documentation says in figures, and the commands that measure it.

A folder imports only from those above it:

- ``tools``: result files, targets, kept parts of long runs, accuracy, memory.
- ``problems``: what is measured on: images, networks, allocation problems.
- ``methods``: what is compared: scores and solvers of others, ways to fine-tune, ways to run a model.
- ``runs``: the commands, ``python -m benchmarks.runs.NAME --help``; ``--quick`` takes seconds, on made-up data.
- ``results``: what they wrote on the machine that each file names, the figures, and ``RESULTS.md``.
- ``figures``, ``pages``: ``python -m benchmarks.pages`` draws, and fills the tables of README and documentation.
"""
