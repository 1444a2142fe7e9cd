"""The state of the service, for people, monitors and systemd."""
