"""From files to training samples: clips (storage), index (listing), dataset, transforms, loader; demo data."""
