"""The bodies of the commands: options and help texts, no logic of their own."""
