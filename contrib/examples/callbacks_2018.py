#!/usr/bin/env python3
"""A script of December 2018: only its import line changed, from `import opensmtpd`.

smtpd.conf:
    filter "callbacks" proc-exec "/usr/local/bin/callbacks_2018.py"
"""
# mypy: allow-untyped-defs
# fmt: off

from bridge import opensmtpd


def link_connect(timestamp, session_id, args):
    rdns, fcrdns, laddr, raddr = args
    print(session_id, "connect", rdns, fcrdns, laddr, raddr)

def link_disconnect(timestamp, session_id, args):
    print(session_id, "disconnect", len(args))

def tx_begin(timestamp, session_id, args):
    tx_id = args[0]
    print(session_id, "begin", tx_id)

def tx_mail(timestamp, session_id, args):
    tx_id, address, status = args
    print(session_id, "mail", tx_id, address, status)

def tx_rcpt(timestamp, session_id, args):
    tx_id, address, status = args
    print(session_id, "rcpt", tx_id, address, status)

def tx_envelope(timestamp, session_id, args):
    tx_id, evp_id = args
    print(session_id, "envelope", tx_id, evp_id)

def tx_ended(timestamp, session_id, args):
    print(session_id, "ended", *args)

def protocol(timestamp, session_id, args):
    line = args[0]
    print(session_id, "said", line)

if __name__ == "__main__":
    o = opensmtpd.SMTP_IN()

    o.on_report('link-connect', link_connect)
    o.on_report('link-disconnect', link_disconnect)
    o.on_report('tx-begin', tx_begin)
    o.on_report('tx-mail', tx_mail)
    o.on_report('tx-rcpt', tx_rcpt)
    o.on_report('tx-envelope', tx_envelope)
    o.on_report('tx-commit', tx_ended)
    o.on_report('tx-rollback', tx_ended)
    o.on_report('protocol-client', protocol)
    o.on_report('protocol-server', protocol)
    o.run()
