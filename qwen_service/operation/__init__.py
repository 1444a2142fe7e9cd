"""What an operator sees: metrics, logs, the state of the service, systemd."""
