"""The roof: command line, settings, cluster launcher and a small client. May import every room; none imports it."""
