"""Pipeline "command": a program of another maker; a folder of DICOM files in, a folder of results out."""
