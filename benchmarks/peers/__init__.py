"""Other people's trainers and tools, run as they are. Each script is started by a benchmark of its own."""
