"""Console commands: flags -> configuration -> call. The only place that prints."""
