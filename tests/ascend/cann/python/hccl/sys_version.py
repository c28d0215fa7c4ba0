"""The version of CANN that the stand-in claims to be."""

__sys_version__ = "8.2"
