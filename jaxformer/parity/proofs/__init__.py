"""One file per subject: what is measured against the twin."""
