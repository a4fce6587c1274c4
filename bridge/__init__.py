"""opensmtpd-bridge: OpenSMTPD asks, services judge."""
