"""The paper's theorems as studies: measured, judged, drawn."""
