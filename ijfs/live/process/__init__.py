"""Linux processes: who they are, whether they live, and how they are forked."""
