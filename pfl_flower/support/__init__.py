"""What every room needs and none owns: tables of names, seeds, files, folders, the console."""
