"""Generated people: the built-in default data set, without a download."""

from reid_hub.data.synthetic.camera import Camera, photograph
from reid_hub.data.synthetic.figure import draw_person
from reid_hub.data.synthetic.person import VIEWS, Person, Pose
from reid_hub.data.synthetic.splits import contact_sheet, synthetic_splits

__all__ = ["VIEWS", "Camera", "Person", "Pose", "contact_sheet", "draw_person", "photograph", "synthetic_splits"]
