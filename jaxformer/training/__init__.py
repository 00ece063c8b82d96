"""Floor 3: loss, schedule, optimizer and step, all pure functions."""
