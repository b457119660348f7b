"""Training the network whose embeddings the users of Appendix J hold."""
