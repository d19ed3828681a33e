"""The numbers in the README, and the goals they are held to."""
