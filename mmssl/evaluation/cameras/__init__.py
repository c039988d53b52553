"""`mmssl evaluate alignment`: synchronised cameras, and the state of what they see."""
