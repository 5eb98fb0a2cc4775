"""Other people's interfaces, served by fastgru. Each module loads its framework when it is called."""
