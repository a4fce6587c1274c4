"""OpenSMTPD's side of the house: values and pure state, standard library only, no I/O.

events (what smtpd says), decisions (what may be said), wire (how both are spelled),
session (what is known), message (the message's bytes), protocol (when what may be said).
"""
