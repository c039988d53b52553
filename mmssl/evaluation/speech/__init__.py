"""`mmssl evaluate ctc|discrimination`: what is said, and which sounds are told apart."""
