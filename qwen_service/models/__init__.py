"""What is known about models before they run: manifests, folders, machines."""
