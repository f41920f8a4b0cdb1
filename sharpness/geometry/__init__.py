"""Lines, curves and planes through parameter space, and directions for them."""

from sharpness.geometry.curves import Arc as Arc
from sharpness.geometry.curves import Bezier as Bezier
from sharpness.geometry.curves import Curve as Curve
from sharpness.geometry.curves import Line as Line
from sharpness.geometry.curves import Polygon as Polygon
from sharpness.geometry.directions import NORMALISATIONS as NORMALISATIONS
from sharpness.geometry.directions import normalised as normalised
from sharpness.geometry.directions import random_direction as random_direction
from sharpness.geometry.foreign import load_directions as load_directions
from sharpness.geometry.planes import Plane as Plane
from sharpness.geometry.planes import eigenvector_plane as eigenvector_plane
from sharpness.geometry.planes import plane_through as plane_through
from sharpness.geometry.planes import random_plane as random_plane
from sharpness.geometry.planes import trajectory_plane as trajectory_plane
