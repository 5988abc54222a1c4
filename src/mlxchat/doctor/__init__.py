"""Checks of this machine: what it is, what it computes right, and how fast.

`check` says what a check is, `host` what it may ask the machine, and `examination` runs them all.
The checks are in one module a topic: `system`, `storage`, `device`, `arithmetic` and `training`.
What they measure is declared in `probes` and computed by the modules `measured_...`, in processes
of their own (`child`), so that a device that crashes or hangs is a finding like any other.
"""
