"""What goes on: metrics, logs, the state of the service, systemd."""
