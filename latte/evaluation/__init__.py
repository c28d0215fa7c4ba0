"""Quality of videos: Frechet distances, the I3D network they use, comparisons of videos."""
