"""Learn over a series: the slices' stored features, and a head that reads them in order."""
