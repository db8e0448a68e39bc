"""The REST service: answers with the champion's forecasts.

Belongs here: HTTP, following the champion from version to version, and telling how it goes. Does not belong
here: features, models, what a bundle is (`bike_assets.core`, the only part of the platform that is imported),
and any decision about which model should be champion.
"""
