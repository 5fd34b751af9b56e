"""Task x checkpoint (or answers from a file) -> graded lines and one summary a bench."""
