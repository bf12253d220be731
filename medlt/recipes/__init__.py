"""One readable file a command, `main(config, progress) -> run folder`, on private helpers that each do one part."""
