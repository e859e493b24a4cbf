"""Traffic over time: how many requests a second the same hardware serves within a limit on TTFT, shared or not.

``schedule`` says what arrives when, ``search`` which rate comes next, ``queueing`` what a queue of such requests should
do; all three are pure. ``runner`` sends, ``experiment`` drives.
"""
