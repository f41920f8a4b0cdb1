"""Loss landscapes: losses along curves, on planes and on random profiles; curvature there; curves of low loss."""

from sharpness.landscape.connect import Connection as Connection
from sharpness.landscape.connect import connect as connect
from sharpness.landscape.connect import load_curve as load_curve
from sharpness.landscape.connect import save_curve as save_curve
from sharpness.landscape.curvature import axis_curvature as axis_curvature
from sharpness.landscape.curvature import convexity_map as convexity_map
from sharpness.landscape.curvature import convexity_template as convexity_template
from sharpness.landscape.evaluate import evaluate_line as evaluate_line
from sharpness.landscape.evaluate import evaluate_plane as evaluate_plane
from sharpness.landscape.evaluate import evaluate_profiles as evaluate_profiles
from sharpness.landscape.evaluate import line_template as line_template
from sharpness.landscape.evaluate import plane_template as plane_template
from sharpness.landscape.evaluate import profiles_template as profiles_template
