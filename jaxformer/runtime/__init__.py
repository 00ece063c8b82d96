"""The process a run lives in: peers, signals, restarts, watchdog, XLA's settings."""
