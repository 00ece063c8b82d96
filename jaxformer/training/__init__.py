"""Loss, schedule, optimizer and step, all pure functions."""
