"""Deployed policies: one intermediate form, native code for this machine, and files for others."""
