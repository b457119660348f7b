"""The paper's figures and tables as studies: each runs whole configurations."""
