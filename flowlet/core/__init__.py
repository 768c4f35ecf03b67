"""The pure floor: marks, definitions, checks, records and interpreters.

Law: nothing here reads a clock, draws a random number, waits on an event loop or does I/O. What a
definition means is decided here; when and where it happens is decided above.
"""
