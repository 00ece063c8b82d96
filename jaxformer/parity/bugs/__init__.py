"""One file per subject: the bugs that its proofs must catch."""
