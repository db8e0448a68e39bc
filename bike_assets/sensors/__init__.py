"""What starts runs in answer to events."""
