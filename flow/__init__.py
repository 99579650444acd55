"""The pure heart of Mirrorflow: what a workflow is and what running it means.

Nothing in this room does I/O, reads a clock, draws a random number or knows asyncio;
time and randomness come in as arguments. A test keeps it so (``tests/test_rooms.py``).
"""
