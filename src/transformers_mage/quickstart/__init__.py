"""
From a folder of images to a model: looking at the images and the machine, choosing, doing and judging.

[`look`] says what the images are, [`choose`] makes a [`Plan`] of that, of the hours there are and of what a few steps
took, [`Quickstart`] does what is planned with the code of the single commands, and what came out is judged. For
`scripts/quickstart.py`; it stands on all other rooms but `conversion`, and none stands on it.
"""

from ..lazy import lazy_front

__getattr__, __all__ = lazy_front(
    __name__,
    {
        "choosing": ["Plan", "choose"],
        "looking": ["ImageSurvey", "look"],
        "measuring": ["Machine", "measure"],
        "preparing": ["prepare"],
        "running": ["Quickstart"],
    },
)
