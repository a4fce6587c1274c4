"""For tests of filters: a model of smtpd that dies where smtpd would, and stand-ins for services."""
